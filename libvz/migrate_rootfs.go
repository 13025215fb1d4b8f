//go:build !lean

package libvz

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// The files of a guest are sent by rsync: the one here takes RelayRsync, a mode
// of our own program, for its remote shell, and so talks to the rsync that the
// other side starts over a stream of the connection.

// relayFD is the descriptor through which RelayRsync reaches the process that
// started rsync.
const relayFD = 3

// RelayVerb is the hidden verb by which main calls RelayRsync.
const RelayVerb = "relay-rsync"

// rsyncOptions: as root, numeric owners, hard links, ACLs and extended
// attributes, holes; times are compared to the nanosecond,
// since by whole seconds a file that is written twice in one would be taken for
// unchanged (rsync(1), --modify-window).
// Other file systems are not seen (inLinklessView), so there need be no -x, which
// would leave out nested subvolumes of btrfs.
func rsyncOptions() []string {
	return []string{"-aHAXS", "--numeric-ids", "--delete", "--modify-window=-1"}
}

// allowedRsync is what the other side may ask our rsync for: the options of all
// passes in the form in which rsync hands them on. What it may not: s, with which
// options come by another way.
const allowedRsync = `^-[ADHIRSXadglnoprtvxz]+e[0-9.]*[A-Za-z]*$|^-@-1$|^--(numeric-ids|delete|delete-during|modify-window=-1|ignore-times|no-r|force)$`

// errNotWhole says that the guest has been in the way of a pass over its files: what has
// been copied is not all.
var errNotWhole = errors.New("not all files were sent")

// sendFiles makes the root file system over there like ours while the guest runs.
func (m *migration) sendFiles(ctx context.Context) error {
	var passes filePasses
	for {
		m.stats.FilePasses++
		began := time.Now()
		err := m.sendPass(ctx)
		again := passes.another(time.Since(began))
		switch {
		case errors.Is(err, errHeldUp):
			m.c.host.warn(m.c.id, "%v: what is missing is sent when the guest is stopped, which takes longer", err)
			return nil
		case errors.Is(err, errNotWhole) && m.sent.any:
			return nil // the last pass has what this one has not
		case errors.Is(err, errNotWhole) && passes.n < mostPasses:
			// Once more; or it was not the guest's doing.
		case err != nil || !again:
			return err
		}
		m.c.host.event(Event{ID: m.c.id, Step: "sending changed files"})
	}
}

// sendPass sends all files, or what has changed since that was done. Files may vanish on
// the way. Its error wraps errNotWhole if a file could not be read, which happens to those
// that are replaced at the wrong moment.
func (m *migration) sendPass(ctx context.Context) error {
	moment, err := m.sent.begin(m.root.dir)
	if err != nil {
		return err
	}
	if !m.sent.any {
		err = m.rsync(ctx, m.root, append(rsyncOptions(), "./", "vzrun:./"), nil)
	} else {
		files, others, unknown := m.sent.changed(m.root.dir)
		if unknown != nil {
			return fmt.Errorf("%w: %w", errNotWhole, unknown)
		}
		err = m.sendListed(ctx, files, others)
	}
	switch {
	case rsyncExit(err, rsyncPartial):
		return fmt.Errorf("%w: %w", errNotWhole, err)
	case err != nil && !rsyncExit(err, rsyncVanished):
		return err
	}
	m.sent.sent(moment)
	return nil
}

// Exit codes of rsync(1).
const (
	rsyncPartial  = 23 // some files were not sent; deletion may not have been done
	rsyncVanished = 24 // files vanished before they were sent
)

func rsyncExit(err error, code int) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == code
}

// sendListed sends what sentFiles.changed has listed.
//
// First come files, whose contents are compared: what is written through a mapping, or
// by a program that sets times back, does not show in their times and sizes. The
// others after them find these as they are to be.
func (m *migration) sendListed(ctx context.Context, files, others []string) error {
	var vanished error
	if len(files) > 0 {
		err := m.rsync(ctx, m.root, append(listOptions(), "--ignore-times", "./", "vzrun:./"), rsyncList(files))
		if err != nil && !rsyncExit(err, rsyncVanished) {
			return err
		}
		vanished = err
	}
	if len(others) > 0 {
		if err := m.rsync(ctx, m.root, append(listOptions(), "--delete", "./", "vzrun:./"), rsyncList(others)); err != nil {
			return err
		}
	}
	return vanished
}

// sendLast sends what has changed since. Nothing moves now.
func (m *migration) sendLast(ctx context.Context) error {
	if !m.sent.any {
		// What has been sent may have changed without a trace since.
		return m.rsync(ctx, m.root, append(rsyncOptions(), "--ignore-times", "./", "vzrun:./"), nil)
	}
	mapped, err := m.c.sharedMappings(m.root.dir, m.plan.opts.Pid)
	if err != nil {
		return err
	}
	files, others, unknown := m.sent.changed(m.root.dir)
	if err := m.sendListed(ctx, append(files, mapped...), others); err != nil {
		return err
	}
	if unknown != nil {
		return m.rsync(ctx, m.root, append(rsyncOptions(), "./", "vzrun:./"), nil)
	}
	return nil
}

// upperFilter is for an overlay's upper directory: what the kernel notes there of
// the layers below by their handles would be wrong on another file system. What it
// notes of the guest's doing is sent (overlayfs.rst, "Whiteouts and opaque
// directories", redirect_dir).
func upperFilter() []string {
	return []string{"--filter=+x trusted.overlay.opaque", "--filter=+x trusted.overlay.redirect", "--filter=-x trusted.overlay.*"}
}

// rsync runs one in a tree, where no symbolic link leads anywhere: what is there
// belongs to a guest, which may run.
func (m *migration) rsync(ctx context.Context, tree movedTree, args []string, input []byte) error {
	if tree.upper {
		args = append(upperFilter(), args...)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	shell := fmt.Sprintf("/proc/%d/exe %s", os.Getpid(), RelayVerb)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	cmd := exec.CommandContext(ctx, "rsync", append([]string{"-e", shell}, args...)...)
	cmd.Stdin = bytes.NewReader(input)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	cmd.ExtraFiles = []*os.File{theirs}
	relayed := make(chan error, 1)
	err = inLinklessView(tree.dir, true, func() error {
		err := cmd.Start()
		theirs.Close()
		return err
	})
	if err != nil {
		return fmt.Errorf("start rsync: %w", err)
	}
	go watchPipes(ctx, cmd.Process.Pid, pipesTick, end)
	go func() {
		err := m.relay(ours, tree)
		if err != nil {
			// What rsync has started waits for an answer, and rsync's output ends
			// with it.
			ours.Close()
		}
		relayed <- err
	}()
	err = cmd.Wait()
	ours.Close()
	lost := <-relayed
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && lost != nil:
		return fmt.Errorf("send files: %w", lost)
	case err != nil:
		return fmt.Errorf("send files: rsync: %w: %s", err, lastLine(complaints.String()))
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > 2 {
		lines = lines[:2] // the first say why, the last only that
	}
	return strings.Join(lines, "; ")
}

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "rsync")
	theirs = os.NewFile(uintptr(fds[1]), "rsync-peer")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// relay connects an rsync of ours to one of the other side: first comes a line
// with the arguments for it.
func (m *migration) relay(ours *net.UnixConn, tree movedTree) error {
	in := bufio.NewReader(ours)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil // rsync has failed before, and says why
	}
	var args []string
	if err := json.Unmarshal(line, &args); err != nil {
		return err
	}
	stream, err := m.session.Open(tree.kind, slices.Concat(tree.args, args)...)
	if err != nil {
		return err
	}
	defer stream.Close()
	back := make(chan struct{})
	go func() {
		io.Copy(ours, stream) //nolint:errcheck // rsync notices what is missing
		ours.CloseWrite()     //nolint:errcheck // see above
		close(back)
	}()
	n, err := io.Copy(stream, in)
	atomic.AddInt64(&m.stats.Rootfs, n)
	if err == nil {
		err = ignoreClosed(stream.CloseWrite())
	}
	if err != nil {
		stream.Close()
	}
	<-back
	return err
}

// RelayRsync is what rsync starts as its remote shell, with the host's name and
// the command for it as args.
func RelayRsync(args []string) error {
	file := os.NewFile(relayFD, "relay")
	conn, err := net.FileConn(file)
	if err != nil {
		return withHint("rsync is to start it, not you", "no connection to relay to: %w", err)
	}
	file.Close()
	up := conn.(*net.UnixConn)
	defer up.Close()
	line, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if _, err := up.Write(append(line, '\n')); err != nil {
		return err
	}
	go func() {
		io.Copy(up, os.Stdin) //nolint:errcheck // the other side notices
		up.CloseWrite()       //nolint:errcheck // see above
	}()
	_, err = io.Copy(os.Stdout, up)
	return err
}

// receiveRootfs runs the rsync that the other side asks for, with its work
// confined to root: a mount of its own, in which no symbolic link is followed. The other
// side goes on when finish has returned.
func receiveRootfs(ctx context.Context, stream *wire.Stream, root string, args []string, finish func() error) error {
	defer stream.Close()
	args, err := serverArgs(args)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "rsync", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stdout = stream
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := inLinklessView(root, false, cmd.Start); err != nil {
		return fmt.Errorf("start rsync: %w", err)
	}
	go func() {
		io.Copy(in, stream) //nolint:errcheck // rsync notices what is missing
		in.Close()
	}()
	// It ends as the one that sends, which knows what has vanished meanwhile.
	if err := cmd.Wait(); err != nil && !rsyncExit(err, rsyncVanished) {
		return fmt.Errorf("receive files: rsync: %w: %s", err, lastLine(complaints.String()))
	}
	if err := finish(); err != nil {
		return err
	}
	return stream.CloseWrite()
}

// serverArgs checks what the other side's rsync would have a remote shell run:
// HOST rsync --server OPTION... . PLACE. The place is always the working
// directory.
func serverArgs(args []string) ([]string, error) {
	const least = 5
	if len(args) < least || args[1] != "rsync" || args[2] != "--server" || args[len(args)-2] != "." {
		return nil, fmt.Errorf("%w: no command of rsync: %.200q", wire.ErrProtocol, args)
	}
	allowed := regexp.MustCompile(allowedRsync)
	out := []string{"--server"}
	for _, a := range args[3 : len(args)-2] {
		if !allowed.MatchString(a) {
			return nil, fmt.Errorf("%w: option of rsync: %.200q", wire.ErrProtocol, a)
		}
		out = append(out, a)
	}
	return append(out, ".", "./"), nil
}

// inLinklessView calls fn on a thread that sees a mount of dir's file system, with
// dir as its root, in dir's place and as its working directory: no symbolic link
// in it is followed (mount_setattr(2), MOUNT_ATTR_NOSYMFOLLOW), no mount below it
// seen, and nothing written if readOnly. What fn starts sees the same.
func inLinklessView(dir string, readOnly bool, fn func() error) error {
	return inPrivateMounts(func() error {
		tree, err := cloneTree(dir, 0)
		if err != nil {
			return err
		}
		defer tree.Close()
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NODEV}
		if readOnly {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fmt.Errorf("restrict mount of %s: %w", dir, err)
		}
		if err := attach(tree, dir); err != nil {
			return err
		}
		if err := unix.Chdir(dir); err != nil {
			return fmt.Errorf("enter %s: %w", dir, err)
		}
		return fn()
	})
}
