#!/usr/bin/env bash
# Puts two Debian kernels for arm64 into DIR/old and DIR/new: real firmware for
# the demo. Uses this machine's Debian sources with a package state of its own,
# so it needs no root and changes nothing outside DIR. Quick the second time.
set -euo pipefail
dir=$(realpath -m "${1:?directory}")
if [ -s "$dir/old" ] && [ -s "$dir/new" ]; then exit 0; fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "no Debian package tools here" >&2; exit 1; }

state=$dir/apt
mkdir -p "$state"/{lists/partial,cache/archives/partial,preferences.d,conf.d}
: >"$state/status"
options=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root
  -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::State::lists="$state/lists"
  -o Dir::Cache="$state/cache" -o Dir::Etc::preferencesparts="$state/preferences.d" -o Acquire::Languages=none)

echo "fetching two Debian arm64 kernels into ${dir#"$PWD/"} (about 130 MB, once)"
apt-get "${options[@]}" update
mapfile -t names < <(apt-cache "${options[@]}" search --names-only '^linux-image-[0-9][0-9.]*[-+][0-9a-z.~+]*-arm64$' |
  awk '{print $1}' | grep -vE -- '-(rt|cloud|16k|unsigned|dbg)-|bpo' | sort -V)
[ ${#names[@]} -ge 2 ] || { echo "fewer than two arm64 kernels in the package sources" >&2; exit 1; }

cd "$dir"
take() { # PACKAGE NAME
  apt-get "${options[@]}" download "$1"
  dpkg-deb -x "$1"_*.deb "x-$2"
  cp x-"$2"/boot/vmlinuz-* "$2.part"
  mv "$2.part" "$2"
  rm -rf "x-$2" "$1"_*.deb
  echo "  $2: $1, $(stat -c %s "$2") bytes"
}
take "${names[-2]}" old
take "${names[-1]}" new
rm -rf "$state"
