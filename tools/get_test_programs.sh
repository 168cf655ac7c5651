#!/bin/sh
# Get the programs that a few tests speak to, sshd and git-lfs, where Debian's packages can be had.
#
#     tools/get_test_programs.sh .venv/programs
#
# They are unpacked into that folder and nowhere else; neither root nor an installation is needed, and the
# lists of packages are kept apart from the system's. Without apt-get, or a mirror, nothing happens: the tests
# that need them say so, and take the system's own where they are installed.
set -u
folder="$1"
packages="openssh-client openssh-server libwrap0 libnss-wrapper git-lfs"

[ -e "$folder/.complete" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg >/dev/null || exit 0

rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" || exit 0
folder="$(cd "$folder" && pwd)"

apt() {
    timeout 120 apt-get -qq \
        -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" -o Debug::NoLocking=1 \
        -o APT::Sandbox::User= -o APT::Update::Post-Invoke= -o APT::Update::Post-Invoke-Success= \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 "$@"
}

cd "$folder/apt" || exit 0
log="$folder/log"
# shellcheck disable=SC2086 # several words
if apt update >"$log" 2>&1 && apt download $packages >>"$log" 2>&1; then
    for package in ./*.deb; do
        dpkg -x "$package" "$folder" >>"$log" 2>&1 || exit 0
    done
    touch "$folder/.complete"
fi
rm -rf "$folder/apt"
