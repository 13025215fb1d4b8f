package libvz

import (
	"context"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// reloadPatience is how long a restored systemd may take to reload. A Debian takes
// a tenth of a second on a quiet machine, and three that are restored at once on an
// emulated one more than ten seconds.
const reloadPatience = 30 * time.Second

// settleIn does what a whole operating system that runs again needs from outside.
// What is not well with it from here on is worth a warning, not its end. Its init is
// watched for a moment, unless stats is nil. A clone reloads it in its own time, with
// what it makes anew.
func (r *revival) settleIn(ctx context.Context, stats *Stats) {
	kind := r.spec.Annotations[annotationGuest]
	if kind == "" {
		return
	}
	if stats != nil {
		r.host.watchInit(ctx, r.id, r.pid, stats)
	}
	if guest.Init(kind) == guest.Systemd && (r.clone == nil || !r.clone.renewing) {
		r.host.reloadInit(ctx, r.id, r.pid, r.config)
	}
	r.host.registerMachine(r.id, r.pid, containerUUID(r.spec), r.config.Rootfs)
}

// reloadInit lets a restored systemd look for the processes of its services anew.
//
// systemd (since 257) knows a process also by the number of its pidfd, which the
// kernel never gives twice (pidfs, Linux 6.9), and restored processes have others.
// It would drop the messages of all main processes that it knew ("reception only
// permitted for main PID"): one with a watchdog, as journald, would be restarted
// when that is over. A reload opens the pidfds again, and has users' managers do so.
func (h *Host) reloadInit(ctx context.Context, id string, pid int, config *configs.Config) {
	if !numbersPidfds(pid) {
		return
	}
	uid, gid, err := rootIDs(config)
	if err != nil {
		return // it has none: restoring it would have failed
	}
	ctx, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- guest.Reload(ctx, pid, uint32(uid), uint32(gid)) }()
	select {
	case err = <-failed:
	case <-ctx.Done(): // files of the guest can hold up whoever opens them
		err = context.Cause(ctx)
	}
	if err != nil {
		h.warn(id, "the restored systemd did not reload (%v): services with a watchdog may be restarted in some minutes, unless `vzrun exec %s systemctl daemon-reload` succeeds", err, id)
	}
}

// numbersPidfds tells whether the kernel gives each pidfd a number of its own.
func numbersPidfds(pid int) bool {
	const pidfsMagic = 0x50494446 // PID_FS_MAGIC in linux/magic.h
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == pidfsMagic
}
