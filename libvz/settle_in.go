package libvz

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/guest"
)

// reloadPatience is how long a restored systemd may take to reload. A Debian takes
// a tenth of a second on a quiet machine, and three that are restored at once on an
// emulated one more than ten seconds.
const reloadPatience = 30 * time.Second

// settleInSoon settles a system in, for at most reloadPatience.
func (r *revival) settleInSoon(ctx context.Context, stats *Stats) {
	ctx, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	r.warnOf(r.settleIn(ctx, stats))
}

// settleBeside has a system settle in while its memory comes, which can take longer
// than the watchdogs of its services wait for a reload. The function returned is
// called, once, when all has come or failed to, and waits: with nil until it is done,
// but not longer than reloadPatience; with an error, of a container that is no more,
// it ends it without a word.
func (r *revival) settleBeside(ctx context.Context, stats *Stats) func(lost error) {
	ctx, end := context.WithCancelCause(context.WithoutCancel(ctx))
	settled := make(chan []error, 1)
	go func() { settled <- r.settleIn(ctx, stats) }()
	return func(lost error) {
		defer end(nil)
		if lost != nil {
			end(lost)
			<-settled
			return
		}
		defer time.AfterFunc(reloadPatience, func() { end(context.DeadlineExceeded) }).Stop()
		r.warnOf(<-settled)
	}
}

func (r *revival) warnOf(unwell []error) {
	for _, err := range unwell {
		r.host.warn(r.id, "%v", err)
	}
}

// settleIn does what a whole operating system that runs again needs from outside,
// until ctx is over. What is not well with it from here on is worth a warning, not its
// end: it is returned. Its init is watched for a moment, unless stats is nil. A clone
// reloads it in its own time, with what it makes anew.
func (r *revival) settleIn(ctx context.Context, stats *Stats) (unwell []error) {
	kind := r.spec.Annotations[annotationGuest]
	if kind == "" {
		return nil
	}
	// First, as its pid may be another's once a lazy one has lost its memory.
	r.host.registerMachine(r.id, r.pid, containerUUID(r.spec), r.config.Rootfs)
	if stats != nil {
		if err := watchInit(ctx, r.id, r.pid, stats); err != nil {
			unwell = append(unwell, err)
		}
	}
	if guest.Init(kind) == guest.Systemd && (r.clone == nil || !r.clone.renewing) {
		if err := reloadInit(ctx, r.pid, r.config); err != nil {
			unwell = append(unwell, fmt.Errorf("the restored systemd did not reload (%w): services with a watchdog may be restarted in some minutes, unless `vzrun exec %s systemctl daemon-reload` succeeds", err, r.id))
		}
	}
	return unwell
}

// watchInit looks whether a restored init is well, and writes its share of a processor
// into stats.
func watchInit(ctx context.Context, id string, pid int, stats *Stats) error {
	share, err := settle(ctx, pid)
	if err != nil {
		return fmt.Errorf("the restored init could not be watched: %w", err)
	}
	stats.InitCPU = &share
	if share >= calm {
		return fmt.Errorf("the restored init has been busy for a second (%.0f %% of a processor): `vzrun exec %s systemctl daemon-reexec` may calm it", share*100, id)
	}
	return nil
}

// reloadInit lets a restored systemd look for the processes of its services anew.
//
// systemd (since 257) knows a process also by the number of its pidfd, which the
// kernel never gives twice (pidfs, Linux 6.9), and restored processes have others.
// It would drop the messages of all main processes that it knew ("reception only
// permitted for main PID"): one with a watchdog, as journald, would be restarted
// when that is over. A reload opens the pidfds again, and has users' managers do so.
func reloadInit(ctx context.Context, pid int, config *configs.Config) error {
	if !numbersPidfds(pid) {
		return nil
	}
	uid, gid, err := rootIDs(config)
	if err != nil {
		return err
	}
	// Files of the guest can hold up whoever opens them.
	return errorWithin(ctx, func() error { return guest.Reload(ctx, pid, uint32(uid), uint32(gid)) })
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
