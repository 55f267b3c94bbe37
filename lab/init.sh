#!/bin/sh
# First program of the lab's initial RAM file system (busybox): makes the lab's root out of the machine's own file
# system, which stays untouched below a throw-away layer, and goes on with inside.sh there.
#
# Kernel command line: berth.lab=FOLDER (the run's folder: env, command) berth.inside=SCRIPT berth.results=FOLDER
# berth.cache=loose or none, of what is read

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

fail() {
    echo "lab: $*" >/dev/console
    exit 1 # the end of PID 1 is a panic, and a panic ends the lab
}

# A module that another group loads as well is no failure: it is there.
load() {
    while read -r module; do
        insmod "/modules/$module" 2>/dev/null || [ -d "/sys/module/$(modname "$module")" ] ||
            echo "lab: cannot load $module" >/dev/console
    done <"/modules/$1"
}

modname() {
    echo "${1%.ko}" | tr - _
}

# The first group carries the lab's own root. The others load beside each other, while the root is being made.
load group-0
for group in /modules/group-*; do
    [ "$group" = /modules/group-0 ] || load "${group##*/}" &
done

for word in $(cat /proc/cmdline); do
    case $word in
        berth.inside=*) inside=${word#*=} ;;
        berth.results=*) results=${word#*=} ;;
        berth.modules=*) modules=${word#*=} ;;
        berth.cache=*) cache=${word#*=} ;;
    esac
done

nine="trans=virtio,version=9p2000.L,msize=512000"
mount -t 9p -o "$nine,cache=$cache,ro" host /host || fail "cannot mount the machine's file system"
mount -t ext4 -o noatime,nobarrier /dev/vda /disk || fail "cannot mount the lab's disk"
mkdir -p /disk/upper /disk/work /disk/data
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work overlay /root || fail "cannot make the root"

mkdir -p "/root$results" /root/var/lib/berth-lab
mount -t 9p -o "$nine,cache=mmap" results "/root$results" || fail "cannot mount $results"
mount -o bind /disk/data /root/var/lib/berth-lab || fail "cannot mount the data folder"
mkdir -p /root/lib/modules
mount -o bind "/host$modules" /root/lib/modules || fail "cannot mount the modules"
wait
for folder in proc sys dev; do
    mount -o move "/$folder" "/root/$folder"
done
exec switch_root /root /bin/busybox sh "$inside"
