package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// record makes a struct utmp.
func record(kind int16, pid int32, id string) []byte {
	b := make([]byte, 384)
	binary.NativeEndian.PutUint16(b, uint16(kind))
	binary.NativeEndian.PutUint32(b[4:], uint32(pid))
	copy(b[40:44], id)
	return b
}

func records(all ...[]byte) []utmpRecord { return parseUtmp(slices.Concat(all...)) }

const inittab = `# comment:not:an:entry
id:2:initdefault:
si::sysinit:/etc/init.d/rcS
l1:1:wait:/etc/init.d/rc 1
l2:2:wait:/etc/init.d/rc 2
longid:23:wait:/sbin/second : with a colon
np:2:wait:+/sbin/not-recorded
all::wait:/sbin/everywhere
1:2345:respawn:/sbin/getty 38400 tty1
broken
`

func TestSysvState(t *testing.T) {
	tab := parseInittab([]byte(inittab))
	level := func(l, before byte) []byte { return record(1, int32(l)|int32(before)<<8, "~~") }
	done := slices.Concat(record(8, 30, "l2"), record(8, 31, "long"), record(8, 32, "all"))
	for name, c := range map[string]struct {
		utmp []utmpRecord
		want string
	}{
		"nothing yet":           {nil, ""},
		"boot scripts":          {records(record(2, 0, "~~"), record(5, 20, "si")), ""},
		"level, scripts run":    {records(level('2', 0), record(5, 30, "l2")), ""},
		"one of two has ended":  {records(level('2', 'N'), record(8, 30, "l2"), record(5, 31, "long")), ""},
		"all have ended":        {records(record(8, 20, "si"), level('2', 'N'), done), "running"},
		"and others run":        {records(level('2', 'N'), done, record(5, 40, "1"), record(7, 41, "ts/1")), "running"},
		"scripts of another":    {records(level('3', '2'), record(8, 30, "l2")), ""},
		"level without scripts": {records(level('5', 'N'), record(8, 32, "all")), "running"},
		"only those of others":  {records(level('5', 'N'), record(8, 30, "l2")), ""},
		"single user":           {records(level('S', 'N')), "maintenance"},
		"halt":                  {records(level('0', '2'), done), "stopping"},
		"reboot":                {records(level('6', '2'), done), "stopping"},
		"cut off":               {parseUtmp(level('2', 'N')[:300]), ""},
	} {
		if got := sysvState(c.utmp, tab); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestParseUtmpOfOtherArchitectures(t *testing.T) {
	long := func(b []byte) []byte { return append(b, make([]byte, 16)...) }
	got := parseUtmp(slices.Concat(long(record(1, '2', "~~")), long(record(8, 7, "l2"))))
	if len(got) != 2 || got[1] != (utmpRecord{8, 7, "l2"}) {
		t.Errorf("got %+v", got)
	}
}

func TestRunitJudge(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	// at is in tenths of a second, now is 100.
	status := func(at int64, wanted, state byte) []byte {
		b := make([]byte, 20)
		t := now.Add(time.Duration(at-100) * 100 * time.Millisecond)
		binary.BigEndian.PutUint64(b, uint64(t.Unix()+1<<62+10))
		binary.BigEndian.PutUint32(b[8:], uint32(t.Nanosecond()))
		b[17], b[19] = wanted, state
		return b
	}
	r := newRunit(nil)
	for _, c := range []struct {
		what string
		b    []byte
		want int
	}{
		{"half written", nil, serviceStarts},
		{"not yet started", status(1, 'u', 0), serviceStarts},
		{"still not", status(1, 'u', 0), serviceStarts},
		{"up for a moment", status(97, 'u', 1), serviceStarts},
		{"up", status(95, 'u', 1), serviceUp},
		{"up, and the clock was set", status(101, 'u', 1), serviceUp},
		{"ended since", status(3, 'u', 2), serviceFailed},
		{"told to be down", status(4, 'd', 0), serviceUp},
	} {
		if got := r.judge("a", c.b, now); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

func TestBusyboxServices(t *testing.T) {
	tab := parseInittab([]byte("::sysinit:/etc/init.d/rcS\n::respawn:/sbin/served -x  all\ntty1::askfirst:-/bin/sh\n::respawn:\n"))
	text := func(args ...string) []child { return []child{{text: strings.Join(args, "\x00") + "\x00"}} }
	for name, c := range map[string]struct {
		children []child
		want     bool
	}{
		"none":               {nil, false},
		"a boot script":      {text("/bin/sh", "/etc/init.d/rcS"), false},
		"a service":          {text("/sbin/served", "-x", "all"), true},
		"a shell":            {text("/bin/sh"), true},
		"a service's script": {text("/bin/sh", "/sbin/served", "-x", "all"), true},
		"other arguments":    {text("/sbin/served", "-y"), false},
		"a kernel's nobody":  {[]child{{}}, false},
	} {
		if got := anyService(tab, c.children); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestExitCode(t *testing.T) {
	for code, want := range map[int]int{0: 0, 7: 7, 129: 133, 130: 0, 137: 137, 1: 1} {
		if got := ExitCode(code); got != want {
			t.Errorf("%d: %d, want %d", code, got, want)
		}
	}
}

func TestSaysReady(t *testing.T) {
	for init, want := range map[Init]bool{Systemd: true, SysVInit: true, OpenRC: true, Runit: true, Busybox: true, Unknown: false, "": false, "no such": false} {
		if got := SaysReady(init); got != want {
			t.Errorf("%s: %v", init, got)
		}
	}
}

func TestSystemdVersion(t *testing.T) {
	for text, want := range map[string]int{
		"\x00systemd 219\x00":                              219,
		"\x00libsystemd-shared-252.so\x00systemd 209\x00":  252,
		"libsystemd-shared-257.13-1~deb13u1.so":            257,
		"systemd 1.2 and systemd 9":                        0,
		"systemd\x00":                                      0,
		"systemd 44 starting":                              44,
		strings.Repeat("systemd ", 1000) + "systemd 262\n": 262,
	} {
		if got := systemdVersion([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestOpenRCUnits(t *testing.T) {
	const tree = "depinfo_0_service='ok'\ndepinfo_0_iprovide_0='virtual'\ndepinfo_1_service='bad'\n" +
		"depinfo_2_service='other'\ndepinfo_3_service='later'\n"
	wanted := []string{"bad", "excluded", "later", "ok", "bad", "virtual"}
	got := openrcUnits(wanted, tree, map[string][]string{
		"started": {"ok"}, "scheduled": {"later"}, "failed": {"crashed"},
	})
	want := []Unit{{Name: "crashed", Result: "failed"}, {Name: "bad", Result: "not started"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// Without the cache nothing is known of what OpenRC would have started.
	if got := openrcUnits(wanted, "", nil); len(got) != 0 {
		t.Errorf("without a cache: %v", got)
	}
}

// bootIn starts a waiter for a rootfs whose init is this process.
func bootIn(t *testing.T, init Init, root string) <-chan error {
	t.Helper()
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	w := &waiter{root: dir, pid: os.Getpid(), uid: uint32(os.Geteuid())}
	end := make(chan error, 1)
	go func() {
		st, err := w.waitBoot(ctx, w.bootOf(init))
		if err == nil && (st.State != "degraded" || len(st.Failed) != 1 || st.Failed[0].Name != "a?b") {
			err = errors.New("state " + st.State)
		}
		end <- err
	}()
	return end
}

func TestWaitBootGoesByFiles(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, init := range []Init{SysVInit, OpenRC} {
		root := tree(t, map[string]string{"etc/inittab": inittab})
		end := bootIn(t, init, root)
		must(os.MkdirAll(filepath.Join(root, "run/openrc/failed"), 0o755))
		must(os.WriteFile(filepath.Join(root, "run/openrc/failed/a\nb"), nil, 0o644))
		f, err := os.Create(filepath.Join(root, "run/utmp"))
		must(err)
		for _, r := range [][]byte{record(1, '2', "~~"), record(5, 9, "l2"), record(8, 9, "l2"), record(8, 10, "long"), record(8, 11, "all")} {
			select {
			case err := <-end:
				t.Fatalf("%s: too early: %v", init, err)
			default:
			}
			_, err = f.Write(r)
			must(err)
		}
		f.Close()
		must(syscall.Mkfifo(filepath.Join(root, "run/openrc/init.ctl"), 0o600))
		must(<-end)
	}
}

func TestWaitBootEndsWithItsContext(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	w := &waiter{root: dir, pid: os.Getpid()}
	for _, init := range []Init{SysVInit, OpenRC, Runit, Busybox} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		if _, err := w.waitBoot(ctx, w.bootOf(init)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", init, err)
		}
		cancel()
	}
}

func TestReadFileTakesOnlyFiles(t *testing.T) {
	root := tree(t, map[string]string{"etc/inittab": "-> /run/fifo", "run/x": ""})
	if err := syscall.Mkfifo(filepath.Join(root, "run/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	w := &waiter{root: dir}
	if _, err := w.readFile("/etc/inittab", 10); err == nil || absent(err) {
		t.Errorf("a fifo: %v", err)
	}
}

// fill writes to a fifo until nothing more fits in.
func fill(t *testing.T, name string) {
	t.Helper()
	fd, err := syscall.Open(name, syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for err == nil {
		_, err = syscall.Write(fd, make([]byte, 4096))
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
}

func TestBeginStop(t *testing.T) {
	uid, gid := os.Geteuid(), os.Getegid()
	fifo := func(root string) error {
		if err := os.MkdirAll(filepath.Join(root, "run"), 0o755); err != nil {
			return err
		}
		return syscall.Mkfifo(filepath.Join(root, "run/initctl"), 0o600)
	}
	inGuest(t, true, fifo, func(tid int, root string) {
		// Nobody reads: the signal has to do.
		if got := BeginStop(SysVInit, tid, uid, gid); got != syscall.SIGINT {
			t.Errorf("no reader: signal %v", got)
		}
		r, err := os.OpenFile(filepath.Join(root, "run/initctl"), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got := BeginStop(SysVInit, tid, uid, gid); got != 0 {
			t.Errorf("signal %v", got)
		}
		var b [400]byte
		if n, err := r.Read(b[:]); n != 384 || err != nil || binary.NativeEndian.Uint32(b[:]) != 0x03091969 || b[8] != '0' {
			t.Errorf("request %v %v: % x", n, err, b[:16])
		}
		fill(t, filepath.Join(root, "run/initctl"))
		if got := BeginStop(SysVInit, tid, uid, gid); got != syscall.SIGINT {
			t.Errorf("full: signal %v", got)
		}
		if got := BeginStop(Runit, tid, uid, gid); got != syscall.SIGINT {
			t.Errorf("runit without its flag: signal %v", got)
		}
		if got := BeginStop(Systemd, tid, uid, gid); got != 37 {
			t.Errorf("systemd: signal %v", got)
		}
	})
	flags := func(root string) error {
		for _, dir := range []string{"run", "etc/runit"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				return err
			}
		}
		return errors.Join(
			os.WriteFile(filepath.Join(root, "run/runit.stopit"), nil, 0),
			os.WriteFile(filepath.Join(root, "run/runit.reboot"), nil, 0o100),
			os.Symlink("/run/runit.stopit", filepath.Join(root, "etc/runit/stopit")),
			os.Symlink("/run/runit.reboot", filepath.Join(root, "etc/runit/reboot")))
	}
	inGuest(t, true, flags, func(tid int, root string) {
		if got := BeginStop(Runit, tid, uid, gid); got != syscall.SIGCONT {
			t.Errorf("runit: signal %v", got)
		}
		for name, want := range map[string]os.FileMode{"stopit": 0o100, "reboot": 0} {
			fi, err := os.Stat(filepath.Join(root, "run/runit."+name))
			if err != nil || fi.Mode().Perm() != want {
				t.Errorf("%s: %v %v", name, fi, err)
			}
		}
	})
}
