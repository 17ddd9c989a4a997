#pragma once

// Scratch memory: the class that all devices share.

#include "../../cpp/src/workspace.h"
