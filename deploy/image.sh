#!/bin/sh
# Collects the root of the image in a new folder: Python, the exporter, the shared libraries that they
# need, and certificate authorities. It has no shell and no package manager.
set -eu
root=$1 exporter=/opt/esms-exporter
python=$(readlink -f "$exporter/bin/python3")
stdlib=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

# What only developers use, and sources of compiled modules.
rm -rf "$stdlib/site-packages" "$stdlib/test" "$stdlib/idlelib" "$stdlib/tkinter" \
  "$stdlib/turtledemo" "$stdlib/ensurepip" "$stdlib/pydoc_data" "$stdlib"/config-*
find "$exporter" -type f \
  \( -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.pyi' \) -delete
# Not by time, so that the image is reproducible. `-f` also replaces files that Python compiled by
# time when pip ran.
"$python" -m compileall -q -f --invalidation-mode unchecked-hash "$stdlib" "$exporter"

mkdir -p "$root/var/lib/dpkg/status.d" "$root/usr/local/bin"
add() {
  tar --create --file=/tmp/part.tar "$@" 2>/dev/null
  tar --extract --file=/tmp/part.tar --directory="$root"
}
add "$exporter" "$stdlib" "$python" "${python%/*}/python" "${python%/*}/python3" /etc/ld.so.cache \
  /etc/os-release /etc/ssl /usr/lib/os-release /usr/lib/ssl /usr/share/ca-certificates

# Shared libraries; libgcc_s is loaded when a thread ends.
find "$exporter" "$stdlib" "$python" -type f \( -name '*.so*' -o -path "$python" \) \
  -exec ldd {} + 2>/dev/null | grep -o '/[^ :]*\.so[^ :]*' > /tmp/libraries
ldconfig -p | grep -o '/.*/libgcc_s\.so\.1$' >> /tmp/libraries
grep -v "^$exporter\|^$stdlib" /tmp/libraries | sort -u -o /tmp/libraries
add --dereference --files-from=/tmp/libraries

# Scanners and licences need the packages that they are from.
while read -r library; do
  # Lines that begin with "diversion by" name no package.
  dpkg-query --search "$library" "$(realpath "$library")" 2>/dev/null | sed -n 's/^\([^ :]*\):.*/\1/p'
done < /tmp/libraries | sort -u | while read -r package; do
  dpkg-query --status "$package" > "$root/var/lib/dpkg/status.d/$package"
  add "/usr/share/doc/$package/copyright"
done

echo 'nobody:x:65534:65534::/data:/sbin/nologin' > "$root/etc/passwd"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
# OpenShift uses any user of group 0.
install -d -o 65534 -g 0 -m 0770 "$root/data"
install -d -m 1777 "$root/tmp"
