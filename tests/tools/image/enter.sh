#!/bin/sh
# enter.sh ROOT SETUP COMMAND…: runs a command in the root file system of an image as a container runtime does.
#
# It is called in a mount and a PID namespace of its own (`unshare --mount --pid --fork --kill-child`), so the command is
# process 1, as in a container, and every mount ends with it. The root is read-only; /proc, /dev and the control group are
# all that is mounted. The command gets no capability, cannot get one (no_new_privs), and has the network of the machine.
#
# SETUP is a folder with the files `user` (UID:GID), `folder` (the working directory), `environment` (K=V, one a line; the
# first of a name counts) and `group` (the folder of a control group, or nothing).
set -eu
root=$1
setup=$2
shift 2
group=$(cat "$setup/group")
user=$(cat "$setup/user")
if [ -n "$group" ]; then
    echo 0 >"$group/cgroup.procs"
fi
mount --bind "$root" "$root"
mount -o remount,bind,ro,nosuid,nodev "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,noexec,mode=755 dev "$root/dev"
for device in null zero full random urandom; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mount -o remount,ro,nosuid,noexec "$root/dev"
if [ -n "$group" ]; then
    mount -t tmpfs -o nosuid,nodev,noexec,mode=755 sys "$root/sys"
    # Where programs look for their limit: version 1 has a folder for each controller.
    if [ -e "$group/memory.max" ]; then own=$root/sys/fs/cgroup; else own=$root/sys/fs/cgroup/memory; fi
    mkdir -p "$own"
    mount --bind "$group" "$own"
    mount -o remount,bind,ro,nosuid,nodev,noexec "$own"
fi

# The last steps need these capabilities themselves (the working directory may be closed to root), which end with root's user id.
needed=+sys_chroot,+setuid,+setgid,+dac_read_search
setpriv=$(command -v setpriv)
set -- "$setpriv" --inh-caps="-all,$needed" -- "$setpriv" --bounding-set=-all --no-new-privs -- \
    "$(command -v unshare)" --root="$root" --wd="$(cat "$setup/folder")" \
    --setgid="${user#*:}" --setuid="${user%:*}" -- "$@"
while read -r setting; do
    [ -z "$setting" ] || set -- "$setting" "$@"
done <"$setup/environment"
exec env -i "$@"
