package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeDepth is more than MaxDepth, so that what a guest nested while nothing
// limited it can still be removed. Each level holds one descriptor.
const removeDepth = 512

// removePasses bounds the attempts against someone who keeps making cgroups.
const removePasses = 100

// Remove removes the cgroup and all below it, children first. It uses rmdir
// and nothing else, so it ends no process and deletes no file. It waits until
// no process is left, by the kernel's notification on cgroup2, by the
// processes' pidfds on v1; if ctx ends first the error wraps its cause and
// names some of those processes.
//
// A cgroup that does not exist is success. Levels beyond 512 are ErrTooBig;
// their number is not bounded. If someone outside keeps making cgroups in it,
// it gives up with an error that wraps EBUSY.
func Remove(ctx context.Context, path string) error {
	d, err := openRoot(path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer d.Close()
	g := group{File: d}
	if g.v2, err = isV2(d); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	up, err := openAt2(int(d.Fd()), "..", filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer up.Close()
	for range removePasses {
		// Most are empty leaves: one call, and nothing to look at.
		err = removeDir(up, filepath.Base(path))
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		if err := g.waitUnused(ctx); err != nil {
			return fmt.Errorf("remove %s%s: %w", path, g.left(), err)
		}
		// systemd removes those of its units, too, and may be the first.
		if err := removeBelow(ctx, d, 0); err != nil && !gone(err) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// RemoveUnused removes a cgroup that has neither processes nor cgroups below it,
// and tells whether it is gone: it does not wait, nor say what is in the way.
func RemoveUnused(path string) bool {
	err := unix.Rmdir(path)
	return err == nil || errors.Is(err, unix.ENOENT)
}

// removeBelow removes what it can below d. A cgroup that is in use is left for
// the next pass, which the caller sees by d's own EBUSY.
func removeBelow(ctx context.Context, d *os.File, depth int) error {
	if depth > removeDepth {
		return fmt.Errorf("%q: %w: more than %d levels", d.Name(), ErrTooBig, removeDepth)
	}
	return eachEntry(d, func(e os.DirEntry) error {
		if !e.IsDir() {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Most are leaves.
		err := removeDir(d, e.Name())
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		sub, err := openDir(d, e.Name())
		if err == nil {
			defer sub.Close()
			err = removeBelow(ctx, sub, depth+1)
		}
		if err == nil {
			err = removeDir(d, e.Name())
		}
		if gone(err) || errors.Is(err, unix.EBUSY) {
			return nil
		}
		return err
	})
}

func removeDir(d *os.File, name string) error {
	err := unix.Unlinkat(int(d.Fd()), name, unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: d.Name() + "/" + name, Err: err}
	}
	return nil
}

// waitUnused waits until no process is left in the cgroup or below it.
func (g group) waitUnused(ctx context.Context) error {
	if g.v2 {
		return waitEmpty(ctx, g.File)
	}
	for ctx.Err() == nil {
		pids, err := procsBelow(g.File)
		switch {
		case gone(err):
			return nil
		case err != nil:
			return err
		case len(pids) == 0:
			return nil
		}
		fds, err := openPidfds(pids[:min(len(pids), pidfdBatch)])
		if err == nil {
			err = waitExit(ctx, pollOf(fds))
		}
		closePidfds(fds)
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func pollOf(pidfds map[int]int) []unix.PollFd {
	fds := make([]unix.PollFd, 0, len(pidfds))
	for _, fd := range pidfds {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return fds
}
