package main

import (
	"testing"

	"github.com/vzrun/vzrun/libvz"
)

func TestParseRootless(t *testing.T) {
	for text, want := range map[string]libvz.Rootless{
		"": libvz.RootlessAuto, "auto": libvz.RootlessAuto, "true": libvz.RootlessYes, "1": libvz.RootlessYes, "false": libvz.RootlessNo,
	} {
		got, err := parseRootless(text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := parseRootless("maybe"); exitCode(err) != 2 {
		t.Errorf("maybe: %v", err)
	}
}

func TestActsForUser(t *testing.T) {
	for _, c := range []struct {
		euid   int
		userns bool
		user   string
		want   bool
	}{
		{1000, false, "", true},
		{1000, true, "root", true},
		{0, false, "", false},
		{0, false, "joe", false},
		{0, true, "root", false},
		{0, true, "joe", true},
		{0, true, "", true},
	} {
		env := func(string) (string, bool) { return c.user, c.user != "" }
		if got := actsForUser(c.euid, func() bool { return c.userns }, env); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
