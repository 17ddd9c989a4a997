#pragma once

#define DDU_VERSION "0.1.0"
