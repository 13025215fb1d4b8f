package criu

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const timerInfo = "pos:\t0\nflags:\t02004002\nmnt_id:\t16\nino:\t2075\nclockid: %d\nticks: %d\nsettime flags: %s\nit_value: (%s)\nit_interval: (0, 5)\n"

func TestParseTimer(t *testing.T) {
	const soon = 3*time.Second + 250
	for _, c := range []struct {
		clock, ticks int
		flags, value string
		at           time.Duration
		ok           bool
	}{
		{0, 0, "01", "3, 250", soon, true},
		{0, 0, "03", "3, 250", soon, true},
		{0, 0, "00", "3, 250", 0, false}, // a span of time: CRIU has it right
		{1, 2, "01", "3, 250", soon, true},
		{1, 0, "01", "0, 0", 0, true}, // has expired, and was read
		{1, 1, "01", "0, 0", 0, true},
		{1, 0, "01", "-1, 0", 0, false},
		{0, 0, "03", "7427376036, 0", 0, false}, // systemd's, for never
		{1, 0, "01", "garbage", 0, false},
		{1, -1, "01", "3, 250", 0, false},
	} {
		got, ok := parseTimer(fmt.Sprintf(timerInfo, c.clock, c.ticks, c.flags, c.value))
		if ok != c.ok {
			t.Errorf("%+v: %v", c, ok)
		}
		if ok && (got.At != c.at || got.Every != 5 || got.Clock != c.clock || got.Ticks != uint64(c.ticks)) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	if _, ok := parseTimer(""); ok {
		t.Error("nothing is no timer")
	}
}

// A timer is set such that who reads it sees what the one that was saved had to say.
func TestSetTimer(t *testing.T) {
	const past, interval = time.Second, 10 * time.Hour
	for _, c := range []struct {
		name  string
		timer Timer
		reads uint64 // 0 = would wait
		armed bool
	}{
		{"to come", Timer{At: time.Hour + clockNow(unix.CLOCK_MONOTONIC)}, 0, true},
		{"expired and read", Timer{}, 0, false},
		{"expired", Timer{Ticks: 1}, 1, false},
		{"expired, with an interval", Timer{At: clockNow(unix.CLOCK_MONOTONIC) - past, Every: interval, Ticks: 3}, 3, true},
		{"expired, and to come again", Timer{At: time.Hour + clockNow(unix.CLOCK_MONOTONIC), Every: interval, Ticks: 2}, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			// As CRIU leaves one: it has expired this moment.
			now := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(past))}
			if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &now, nil); err != nil {
				t.Fatal(err)
			}
			c.timer.Flags = unix.TFD_TIMER_ABSTIME
			if err := c.timer.set(fd, 0); err != nil {
				t.Fatal(err)
			}
			var count [8]byte
			_, err = unix.Read(fd, count[:])
			if c.reads == 0 && !errors.Is(err, unix.EAGAIN) || c.reads != 0 && err != nil {
				t.Fatalf("read: %v", err)
			}
			if got := binary.NativeEndian.Uint64(count[:]); got != c.reads {
				t.Errorf("%d expirations, not %d", got, c.reads)
			}
			var left unix.ItimerSpec
			if err := unix.TimerfdGettime(fd, &left); err != nil {
				t.Fatal(err)
			}
			if armed := left.Value.Nano() > 0; armed != c.armed {
				t.Errorf("armed: %v", armed)
			}
		})
	}
}

func TestParseOffsets(t *testing.T) {
	monotonic, boottime := parseOffsets("monotonic         -12 500000000\nboottime            7         1\nnew 1 2\n")
	if monotonic != -12*time.Second+500*time.Millisecond || boottime != 7*time.Second+1 {
		t.Error(monotonic, boottime)
	}
}

func TestIsPressure(t *testing.T) {
	for target, want := range map[string]bool{
		"/sys/fs/cgroup/init.scope/memory.pressure": true,
		"/cpu.pressure":         true,
		"/proc/pressure/io":     true,
		"/srv/memory":           false,
		"/srv/memory.pressured": false,
		"socket:[1]":            false,
		"":                      false,
	} {
		if isPressure(target) != want {
			t.Errorf("%q: not %v", target, want)
		}
	}
}

func TestTriggerText(t *testing.T) {
	dir := t.TempDir()
	write := base64.StdEncoding.EncodeToString
	for environ, want := range map[string]string{
		"": defaultTrigger,
		"A=b\x00MEMORY_PRESSURE_WRITE=" + write([]byte("some 1 2000000\x00")) + "\x00": "some 1 2000000",
		"CPU_PRESSURE_WRITE=" + write([]byte("full 1 2")):                              defaultTrigger,
		"MEMORY_PRESSURE_WRITE=" + write([]byte("0 0 4294967295")):                     defaultTrigger,
		"MEMORY_PRESSURE_WRITE=%%%":                                                    defaultTrigger,
	} {
		if err := os.WriteFile(filepath.Join(dir, "environ"), []byte(environ), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := triggerText(dir, "/sys/fs/cgroup/memory.pressure"); got != want {
			t.Errorf("%q: %q", environ, got)
		}
	}
}

// A timer of our own is found, and set to where it was.
func TestArmedTimer(t *testing.T) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := time.Now().Add(time.Hour)
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(at.UnixNano())}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		t.Fatal(err)
	}
	own := []Task{{Pid: os.Getpid(), Guest: 7}}
	found, err := FindArmed(os.Getpid(), own)
	if err != nil || len(found.Timers) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	got := found.Timers[0]
	if off := (got.At - time.Duration(at.UnixNano())).Abs(); got.Pid != 7 || got.FD != fd || off > time.Minute {
		t.Errorf("%+v, %v off", got, off)
	}
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := found.Rearm(os.Getpid(), own); err != nil {
		t.Fatal(err)
	}
	var now unix.ItimerSpec
	if err := unix.TimerfdGettime(fd, &now); err != nil || now.Value.Sec < 3500 {
		t.Errorf("%+v, %v", now, err)
	}
	if err := found.Rearm(os.Getpid(), nil); err == nil {
		t.Error("a task that is not there has no timer")
	}
}

// What is no pressure file is not written to, whatever the images say.
func TestTriggerSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.pressure")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (Trigger{Text: defaultTrigger}).set(int(f.Fd())); err == nil {
		t.Error("written")
	}
	if info, err := f.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("%v, %v", info, err)
	}
}
