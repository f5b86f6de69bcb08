# Sourced by quickstart and test: makes .venv once with the pinned versions, and sets PYTHON.
# Usage: setup_venv EXTRA   (EXTRA may be empty)

# True if an installation of the same versions had all these extras, and perhaps more.
installed() {
  local stamp name
  for stamp in .venv/installed-*; do
    [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] || continue
    for name in ${1//,/ }; do
      case ",${stamp#*installed-}," in *",$name,"*) ;; *) continue 2 ;; esac
    done
    return 0
  done
  return 1
}

setup_venv() {
  unset PYTHONDONTWRITEBYTECODE # or every process would compile all that it imports
  local extra="$1" base stamp wanted
  for base in python3.11 python3.12 python3.13 python3; do
    if "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    base=""
  done
  if [ -z "$base" ]; then
    echo "Python 3.11 or later was not found; install it (python.org) and run this again." >&2
    exit 1
  fi
  PYTHON="$PWD/.venv/bin/python"
  stamp=".venv/installed-${extra:-base}"
  wanted="$(cat pyproject.toml constraints.txt | cksum)"
  if [ -x "$PYTHON" ] && installed "$extra" "$wanted"; then return; fi
  echo "Installing into .venv (once, a minute or two) ..."
  [ -x "$PYTHON" ] || "$base" -m venv .venv
  # Modules are compiled when they are first imported: pip would compile thousands that never are.
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
    -e ".${extra:+[$extra]}"
  echo "$wanted" > "$stamp"
}
