package criu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelData is where CRIU keeps what it has found out about the kernel
// (criu/kerndat.c). It reads the file wherever it lies, but writes it only to a
// tmpfs: it must not outlive a reboot.
const kernelData = "/run/criu.kdat"

// Known is what need not be found out about a criu and its kernel each time.
type Known struct {
	Path    string
	Version int // 4.2.1 is 40201
	// data is a file with CRIU's own findings; "" = CRIU keeps them itself.
	data string
}

// Know returns what is known of the criu at path, and asks it where that is
// nothing yet. Answers are kept below dir, which is made, until the next boot, and
// for as long as program and privileges are the same; a dir that cannot be written
// to costs the time to ask, and "" is none. private must run a function on a thread with a mount
// namespace of its own. The error is ErrTooOld below MinVersion.
func Know(ctx context.Context, path, dir string, private func(func() error) error) (Known, error) {
	k := Known{Path: path}
	boot, key, err := identity(path)
	if err != nil {
		return k, fmt.Errorf("criu: %w", err)
	}
	kept := filepath.Join(dir, boot+"."+key)
	if text, err := os.ReadFile(filepath.Join(kept, "version")); err == nil {
		if k.Version, err = strconv.Atoi(string(text)); err == nil && k.Version >= MinVersion {
			k.findData(kept)
			return k, nil
		}
	}
	if k.Version, err = CheckVersion(ctx, path); err != nil {
		return k, err
	}
	if dir != "" && k.keep(ctx, dir, kept, private) == nil {
		k.findData(kept)
	}
	return k, nil
}

// Lend has a criu that the calling thread starts know the kernel. The thread
// must have a mount namespace of its own. What cannot be lent CRIU finds out.
func (k Known) Lend() error {
	if k.data == "" {
		return nil
	}
	place, err := os.OpenFile(kernelData, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil //nolint:nilerr // a read-only /run: see above
	}
	place.Close()
	if err := unix.Mount(k.data, kernelData, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount %s: %w", kernelData, err)
	}
	return nil
}

func (k *Known) findData(kept string) {
	data := filepath.Join(kept, "data")
	if st, err := os.Stat(data); err == nil && st.Size() > 0 && !onTmpfs(filepath.Dir(kernelData)) {
		k.data = data
	}
}

// keep writes what there is to know into a new directory that takes its place
// as a whole.
func (k *Known) keep(ctx context.Context, dir, kept string, private func(func() error) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	boot, _, _ := strings.Cut(filepath.Base(kept), ".")
	forgetOthers(dir, boot)
	fresh, err := os.MkdirTemp(dir, boot+freshMark)
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if !onTmpfs(filepath.Dir(kernelData)) {
		var data []byte
		// Without it CRIU finds out by itself.
		private(func() (err error) { data, err = probe(ctx, k.Path); return err }) //nolint:errcheck // see above
		if err := os.WriteFile(filepath.Join(fresh, "data"), data, 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(fresh, "version"), []byte(strconv.Itoa(k.Version)), 0o600); err != nil {
		return err
	}
	// One that lacks something, or that somebody else has just made.
	if err := os.RemoveAll(kept); err != nil {
		return err
	}
	return os.Rename(fresh, kept)
}

// forgetOthers removes what was kept before the last boot, and what somebody who
// was killed has left half done.
func forgetOthers(dir, boot string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		old := !strings.HasPrefix(e.Name(), boot+".")
		if st, err := e.Info(); err == nil && strings.Contains(e.Name(), freshMark) {
			old = old || time.Since(st.ModTime()) > 2*probeTime
		}
		if old {
			os.RemoveAll(filepath.Join(dir, e.Name())) //nolint:errcheck // the next one does
		}
	}
}

// freshMark is in the name of what is not whole yet.
const freshMark = ".new-"

// probeTime bounds a look at the kernel, which takes tenths of a second.
const probeTime = 10 * time.Second

// probe has CRIU look at the kernel, on a thread with a mount namespace of its
// own, where the host's /run is hidden.
func probe(ctx context.Context, path string) ([]byte, error) {
	if err := unix.Mount("tmpfs", filepath.Dir(kernelData), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=1m"); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	// Not by RPC, which keeps nothing. It fails where the kernel lacks
	// something, which is not the question here.
	exec.CommandContext(ctx, path, "check").Run() //nolint:errcheck // see above
	return os.ReadFile(kernelData)
}

// identity names the boot, and all that CRIU's findings depend on beside the
// kernel: the program, and what its caller may do.
func identity(path string) (boot, key string, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	user, err := os.Readlink("/proc/thread-self/ns/user")
	if err != nil {
		return "", "", err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return "", "", os.NewSyscallError("capget", err)
	}
	all := fmt.Sprint(path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim, user, caps[0].Effective, caps[1].Effective)
	sum := sha256.Sum256([]byte(all))
	return strings.TrimSpace(string(id)), hex.EncodeToString(sum[:8]), nil
}

func onTmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}
