# Sourced by what needs the tree elsewhere.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/base.sh"

# copy_tree DIR: the files that git knows or would add, as they are now.
copy_tree() {
  rm -rf "$1"
  mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard --deduplicate |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar -c --null -T - | tar -x -C "$1"
}
