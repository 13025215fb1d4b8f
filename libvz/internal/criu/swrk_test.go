package criu

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// playCriu returns a server whose CRIU asks for consent to each of scripts and then
// succeeds, and what consent it has had.
func playCriu(t *testing.T, scripts ...string) (*server, <-chan []bool) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_LOCAL, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, len(fds))
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "criu")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ends[i] = conn.(*net.UnixConn)
	}
	consents := make(chan []bool, 1)
	go func() {
		criu, buf := ends[1], make([]byte, 4096)
		say := func(r *rpc.CriuResp) {
			if data, err := r.MarshalVT(); err == nil {
				criu.Write(data) //nolint:errcheck // the answer tells
			}
		}
		var had []bool
		criu.Read(buf) //nolint:errcheck // what is asked for does not matter
		for _, script := range scripts {
			say(&rpc.CriuResp{
				Type: rpc.CriuReqType_NOTIFY.Enum(), Success: new(true),
				Notify: &rpc.CriuNotify{Script: new(script), Pid: new(int32(1))},
			})
			n, err := criu.Read(buf)
			if err != nil {
				break
			}
			var answer rpc.CriuReq
			if answer.UnmarshalVT(buf[:n]) != nil {
				break
			}
			had = append(had, answer.GetNotifySuccess())
		}
		say(&rpc.CriuResp{Type: rpc.CriuReqType_RESTORE.Enum(), Success: new(true)})
		consents <- had
	}()
	return &server{conn: ends[0]}, consents
}

// CRIU lets the tasks go on after post-restore, whatever it is told. A caller that changes
// its mind then must not be told that nothing runs.
func TestNothingIsRefusedOnceTheTasksRun(t *testing.T) {
	scripts := []string{"post-restore", "network-unlock", "pre-resume", "post-resume"}
	for _, test := range []struct {
		name      string
		cancelled string // at that stage
		heard     []string
	}{
		{"nobody cancels", "", scripts},
		{"when they are about to run", "post-restore", scripts},
		{"when they run", "pre-resume", scripts},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, consents := playCriu(t, scripts...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var heard []string
			_, err := s.do(ctx, &rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum()}, func(st Stage) error {
				heard = append(heard, st.Name)
				if st.Name == test.cancelled {
					cancel()
				}
				return nil
			})
			if err != nil || !slices.Equal(heard, test.heard) {
				t.Errorf("%v; heard %v", err, heard)
			}
			if had := <-consents; slices.Contains(had, false) {
				t.Errorf("consents %v", had)
			}
		})
	}
}

func TestWhoeverCancelsBeforeRefuses(t *testing.T) {
	s, consents := playCriu(t, "post-setup-namespaces", "post-restore")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.do(ctx, &rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum()}, func(Stage) error {
		cancel()
		return nil
	})
	var refused *refusal
	if !errors.As(err, &refused) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if had := <-consents; !slices.Equal(had, []bool{true, false}) {
		t.Errorf("consents %v", had)
	}
}
