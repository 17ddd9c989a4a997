"""The CUDA wheels that there are, so that a message can name the right one. `ci/matrix check` compares the matrix."""

Version = tuple[int, int]

# Tag: toolkit, and architectures as CMake writes them.
WHEELS: dict[str, tuple[Version, str]] = {
    "cu126": ((12, 6), "50-real;60-real;70-real;75-real;80-real;90-real;90-virtual"),
    "cu128": ((12, 8), "70-real;75-real;80-real;90-real;100-real;120-real;100-virtual"),
    "cu130": ((13, 0), "75-real;80-real;90-real;100-real;120-real;100-virtual"),
}
