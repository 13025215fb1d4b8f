package console

import (
	"testing"
	"time"
)

func TestEscape(t *testing.T) {
	begin := time.Unix(1000, 0)
	type typed struct {
		text string
		at   time.Duration
	}
	for name, c := range map[string]struct {
		key   string
		typed []typed
		found bool
		want  string // for the guest
	}{
		"at once":             {"^]", []typed{{"ls\r\x1d\x1d\x1dmore", 0}}, true, "ls\r"},
		"one by one":          {"^]", []typed{{"\x1d", 0}, {"\x1d", 400 * time.Millisecond}, {"\x1d", 900 * time.Millisecond}}, true, ""},
		"too slow":            {"^]", []typed{{"\x1d", 0}, {"\x1d", 400 * time.Millisecond}, {"\x1d", 1100 * time.Millisecond}}, false, "\x1d\x1d"},
		"something between":   {"^]", []typed{{"\x1d\x1dx\x1d", 0}, {"y", 0}}, false, "\x1d\x1dx\x1dy"},
		"one, and then none":  {"^]", []typed{{"a\x1d", 0}, {"", 999 * time.Millisecond}}, false, "a"},
		"one, and it is late": {"^]", []typed{{"a\x1d", 0}, {"", time.Second}}, false, "a\x1d"},
		"a control key":       {"^a", []typed{{"\x01\x01\x01", 0}}, true, ""},
		"a letter":            {"q", []typed{{"qqq", 0}}, true, ""},
		"none":                {"none", []typed{{"\x1d\x1d\x1d", 0}}, false, "\x1d\x1d\x1d"},
		"another key's":       {"^a", []typed{{"\x1d\x1d\x1d", 0}}, false, "\x1d\x1d\x1d"},
		"begun again":         {"^]", []typed{{"\x1d", 0}, {"\x1d\x1d\x1d", 2 * time.Second}}, true, "\x1d"},
	} {
		e, err := ParseEscape(c.key)
		if err != nil {
			t.Fatal(err)
		}
		got, found := "", false
		for _, x := range c.typed {
			now := begin.Add(x.at)
			if x.text == "" {
				got += string(e.Late(now))
				continue
			}
			out, f := e.Find([]byte(x.text), now)
			got, found = got+string(out), found || f
		}
		if found != c.found || got != c.want {
			t.Errorf("%s: found %v, passed on %q; want %v, %q", name, found, got, c.found, c.want)
		}
	}
	for _, bad := range []string{"", "ab", "^^^", " ", "^\x01", "\x1d", "é"} {
		if _, err := ParseEscape(bad); err == nil {
			t.Errorf("ParseEscape(%q) took it", bad)
		}
	}
}
