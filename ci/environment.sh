# Makes a virtual environment of its own and installs the project with some extras into it.
# Usage: . ci/environment.sh NAME EXTRAS; afterwards "$python" is its interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
interpreter=${PYTHON:-python3}
"$interpreter" - <<'PY' || { echo "Python 3.10 or newer is needed; set PYTHON to one" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 10))
PY
venv=".venv-$1"
"$interpreter" -m venv "$venv" || {
    echo "Python's venv module is needed (on Debian: apt-get install python3-venv)" >&2
    exit 1
}
python="$PWD/$venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$python" -m pip install --quiet --disable-pip-version-check --editable ".[$2]"
