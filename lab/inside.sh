#!/bin/busybox sh
# PID 1 of the lab, run by busybox, whose built-in programs cost no reading over 9p: finishes the host (file systems, control groups, loopback, the parked machine), runs the command of
# this run, and tells the outside how it went.
#
# Ports (virtio-serial): berth.out and berth.err carry the command's output, berth.control carries lines:
#   ready          the command starts now
#   beat CPU       this processor of the lab runs programs, every two seconds
#   status N       the command ended with this status; its output has been delivered

run=
for word in $(cat /proc/cmdline); do
    case $word in berth.lab=*) run=${word#*=} ;; esac
done

mount -t tmpfs -o mode=755,nosuid,nodev run /run
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/hugepages /run/lock
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
ln -sfn /proc/self/fd /dev/fd
ln -sfn fd/0 /dev/stdin
ln -sfn fd/1 /dev/stdout
ln -sfn fd/2 /dev/stderr

for name in /sys/class/virtio-ports/*; do
    case $(cat "$name/name" 2>/dev/null) in
        berth.out) out=/dev/${name##*/} ;;
        berth.err) err=/dev/${name##*/} ;;
        berth.control) control=/dev/${name##*/} ;;
    esac
done
exec 3>"$control"

for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
ip link set lo up
hostname lab 2>/dev/null || echo lab >/proc/sys/kernel/hostname
ulimit -n 1048576

# The environment of the run: BERTH_LAB_XTASK and whatever was passed in.
. "$run/env"

# The command's output goes through pipes, because a port can be opened only once and programs do reopen /dev/stderr.
mkfifo /run/lab-out /run/lab-err /run/lab-parked
cat </run/lab-out >"$out" &
out_pid=$!
cat </run/lab-err >"$err" &
err_pid=$!
exec 4>/run/lab-out 5>/run/lab-err

"$BERTH_LAB_XTASK" park >/run/lab-parked 2>/dev/console 3>&- 4>&- 5>&- &
read -r parked </run/lab-parked
if [ "$parked" != parked ]; then
    echo "lab: no virtual machine can be made here" >&5
    exit 1
fi

# Each from its own processor: one that has stalled must not hide behind the others.
beat_pids=
for path in /sys/devices/system/cpu/cpu[0-9]*; do
    cpu=${path##*/cpu}
    taskset -c "$cpu" /bin/busybox sh -c "while echo beat $cpu; do sleep 2; done" >&3 4>&- 5>&- &
    beat_pids="$beat_pids $!"
done

echo ready >&3
(
    exec 3>&-
    exec /bin/sh "$run/command"
) </dev/null >&4 2>&5 4>&- 5>&-
status=$?

# What is left of the command's children may hold the pipes open; a moment is enough for what is in them.
exec 4>&- 5>&-
(
    sleep 3
    kill $out_pid $err_pid 2>/dev/null
) &
wait $out_pid $err_pid
kill $beat_pids
wait $beat_pids 2>/dev/null
echo "status $status" >&3
# The outside switches the lab off once it has read that.
sleep 60
echo o >/proc/sysrq-trigger
