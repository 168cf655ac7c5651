#!/bin/sh
# Get the browser in which a few tests open what isohub writes: Debian's chromium-headless-shell, 100 MB.
#
#     tools/get_browser.sh .venv/browser
#
# It is unpacked into that folder with those of its libraries that the system lacks, and nowhere else, as
# get_test_programs.sh does it. Without apt-get, or a mirror, nothing happens: the tests that need it say so, and take
# the system's own where it is installed.
set -u
folder="$1"

[ -e "$folder/.complete" ] && exit 0
for name in chromium-headless-shell chromium google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
command -v apt-get >/dev/null && command -v dpkg >/dev/null || exit 0

rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" || exit 0
folder="$(cd "$folder" && pwd)"

apt() {
    timeout 300 apt-get -qq \
        -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" -o Debug::NoLocking=1 \
        -o APT::Sandbox::User= -o APT::Update::Post-Invoke= -o APT::Update::Post-Invoke-Success= \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 "$@"
}

cd "$folder/apt" || exit 0
log="$folder/log"
apt update >"$log" 2>&1 || exit 0
# What would be installed: 'uri' file size hash. The name of a file begins with that of its package.
packages="$(apt install --no-install-recommends --print-uris chromium-headless-shell fonts-dejavu-core 2>>"$log" |
    sed -n "s/^'[^']*' \([a-z0-9.+-]*\)_.*/\1/p")"
# shellcheck disable=SC2086 # several words
if [ -n "$packages" ] && apt download $packages >>"$log" 2>&1; then
    for package in ./*.deb; do
        dpkg -x "$package" "$folder" >>"$log" 2>&1 || exit 0
    done
    touch "$folder/.complete"
fi
rm -rf "$folder/apt"
