package main

import "testing"

func TestNotification(t *testing.T) {
	for _, c := range []struct {
		message, want string
		ready         bool
	}{
		{"READY=1", "READY=1\nMAINPID=77\n", true},
		{"STATUS=up\nREADY=1\n", "STATUS=up\nREADY=1\nMAINPID=77\n", true},
		{"MAINPID=1\nREADY=1", "READY=1\nMAINPID=77\n", true},
		{"READY=0", "READY=0\n", false},
		{"STATUS=READY=1", "STATUS=READY=1\n", false},
		{"XREADY=1\nMAINPID=5\nFDSTORE=1\nBARRIER=1\nBUSERROR=x", "", false},
		{"WATCHDOG=1", "WATCHDOG=1\n", false},
		{"STATUS=a\x1b[2J\u009bb\x7f\tc\rd\x9be", "STATUS=a?[2J?b??c?d\ufffde\n", false},
		{"", "", false},
		{"\n\n=\n", "", false},
	} {
		got, ready := notification([]byte(c.message), 77)
		if string(got) != c.want || ready != c.ready {
			t.Errorf("%q: %q, %v; want %q, %v", c.message, got, ready, c.want, c.ready)
		}
	}
}
