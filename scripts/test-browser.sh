#!/usr/bin/env bash
# Opens the report of an evaluation in headless Chromium, which is installed first where there is none and that is allowed.
# More arguments go to go test: with -artifacts -outputdir DIR it keeps pictures of the page.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_browser() {
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" && return
  done
  return 1
}

browser=${UADT_BROWSER:-}
if [ -z "$browser" ] && ! browser=$(find_browser); then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no Chromium on PATH, and it cannot be installed here: install chromium, or set UADT_BROWSER to one" >&2
    exit 1
  fi
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >&2
  browser=$(find_browser)
fi
UADT_BROWSER=$browser go test -count=1 -tags browser -run Browser "$@" ./cmd/uadt-train
