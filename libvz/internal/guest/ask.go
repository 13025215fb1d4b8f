package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Starting is what [Ask] returns of a systemd that is not ready for questions.
const Starting = "starting"

// Ask returns what the systemd that is process pid says of the system at this
// moment: systemd's SystemState, or [Starting] where its socket is not there
// yet. Arguments, rights and trust are those of [WaitReady], but it waits for
// nothing but the answer, and for that not longer than ctx.
//
// Files of the guest are opened, which a file system of the guest's own making
// (FUSE) can delay for as long as it likes: a caller who must not wait calls
// Ask in a goroutine that it can leave behind.
func Ask(ctx context.Context, pid int, uid, gid uint32) (string, error) {
	state := Starting
	err := talk(ctx, pid, uid, gid, func(b *bus) (err error) {
		state, err = b.property(busPath, busIface, "SystemState")
		return err
	})
	if absent(err) || errors.Is(err, unix.ECONNREFUSED) {
		return Starting, nil
	}
	if err != nil {
		return "", err
	}
	return state, nil
}

// Reload lets the systemd that is process pid read its units and look for its
// services' processes anew, as `systemctl daemon-reload` does, and waits for it. Then
// it has the managers of users (`systemd --user`) do so, too, and does not wait for
// these. Arguments, rights, trust and delays are those of [Ask].
func Reload(ctx context.Context, pid int, uid, gid uint32) error {
	return talk(ctx, pid, uid, gid, func(b *bus) error {
		if _, err := b.call(busPath, busIface, "Reload", ""); err != nil {
			return err
		}
		return b.reloadUsers()
	})
}

// reloadUsers has PID 1 send its users' managers the signal at which they reload
// (systemd(1)): a reload of their units would make them start anew.
func (b *bus) reloadUsers() error {
	const most = 1024 // what a guest can keep us busy with
	managers, err := b.listUnits(most, "ListUnitsByPatterns", []string{"active"}, []string{"user@*.service"})
	if err != nil {
		return fmt.Errorf("managers of users: %w", err)
	}
	for _, m := range managers {
		_, err := b.call(busPath, busIface, "KillUnit", "", m.name, "main", int32(unix.SIGHUP))
		var answer answerError
		if err != nil && !errors.As(err, &answer) { // it may have ended
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// talk connects to a systemd, once, and has a conversation that ends with ctx.
func talk(ctx context.Context, pid int, uid, gid uint32, about func(*bus) error) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrInitGone
	} else if err != nil {
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	root, err := openRoot(pid)
	if ended(pidfd) || errors.Is(err, fs.ErrNotExist) { // see WaitReady
		return ErrInitGone
	} else if err != nil {
		return err
	}
	defer root.Close()
	w := waiter{root: root, pidfd: pidfd, uid: uid, gid: gid}
	conn, err := w.tryConnect()
	if err != nil {
		return fmt.Errorf("%s of the guest: %w", privateSocket, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline) //nolint:errcheck // a socket is pollable
	}
	b, err := newBus(conn)
	if err != nil {
		return err
	}
	return about(b)
}

// maxOSRelease bounds an os-release file; real ones have some hundred bytes.
const maxOSRelease = 64 << 10

// OSName returns the name of the operating system in the root directory at dir,
// for people: PRETTY_NAME of os-release(5), "" where there is none. Links are
// followed as the guest's root would, and no other mount is entered. The text
// is stripped of control characters.
func OSName(dir string) (string, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := readOwnFile(root, name, maxOSRelease)
		if absent(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		return prettyName(text), nil
	}
	return "", nil
}

// readOwnFile reads a regular file on the file system of root itself.
func readOwnFile(root *os.File, name string, most int64) (string, error) {
	f, err := openRegular(root, name, inOneMount)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most))
	return string(text), err
}

// prettyName reads the shell-like assignments of os-release(5).
func prettyName(text string) string {
	name := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "PRETTY_NAME":
			return unquote(value)
		case "NAME":
			name = unquote(value)
		}
	}
	return name
}

func unquote(s string) string {
	if n := len(s); n >= 2 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		s = s[1 : n-1]
	}
	return printable(strings.NewReplacer(`\"`, `"`, `\$`, `$`, "\\`", "`", `\\`, `\`).Replace(s))
}
