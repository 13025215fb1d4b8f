package console

import (
	"bytes"
	"strings"
	"testing"
)

func TestCleaner(t *testing.T) {
	for _, c := range []struct{ in, plain, coloured string }{
		{"plain\ttext\n", "plain\ttext\n", ""},
		{"line\r\n", "line\n", ""},
		{"\x1b[0;32m  OK  \x1b[0m Started\r\n", "  OK   Started\n", "\x1b[0;32m  OK  \x1b[0m Started\n"},
		{"\x1b[2J\x1b[1;1Hclear", "clear", ""},
		{"\x1b]0;a title\x07after", "after", ""},
		{"\x1b]52;c;cm0gLXJm\x1b\\after", "after", ""},
		{"\x1bP+q544e\x1b\\after", "after", ""},
		{"\x1b]0;never ends\nnext line", "\nnext line", ""},
		{"\x1b[>4;2mprivate", "private", ""},
		{"\x1b[6n\x1b[c\x1b[?2004hask", "ask", ""},
		{"\x1b(B\x1b=\x1b7saved", "saved", ""},
		{"a\x00b\x07c\x7fd\x08e", "abcde", ""},
		{"grüße – 你好", "grüße – 你好", ""},
		{"bad \xff\xfe utf-8 \xc3", "bad \uFFFD\uFFFD utf-8 ", ""},
		{"c1 \u009b31m csi", "c1 31m csi", ""},
		{"raw c1 \x9b31m", "raw c1 \uFFFD31m", ""},
		{"\x1b[" + strings.Repeat("1;", 200) + "mlong", "long", ""},
		{"\x1b\x1b[31mtwo", "two", "\x1b[31mtwo"},
		{"\x1b[3\x1b[31mcut", "cut", "\x1b[31mcut"},
	} {
		if c.coloured == "" {
			c.coloured = c.plain
		}
		for _, step := range []int{1, 3, 1000} {
			if got := cleaned(c.in, step, false); got != c.plain {
				t.Errorf("%q in steps of %d: %q, want %q", c.in, step, got, c.plain)
			}
			if got := cleaned(c.in, step, true); got != c.coloured {
				t.Errorf("%q with colours: %q, want %q", c.in, got, c.coloured)
			}
		}
	}
}

func cleaned(in string, step int, colours bool) string {
	var out bytes.Buffer
	c := &Cleaner{To: &out, Colours: colours}
	for len(in) > 0 {
		n := min(step, len(in))
		c.Write([]byte(in[:n])) //nolint:errcheck // a buffer takes everything
		in = in[n:]
	}
	return out.String()
}

// Whatever a guest writes, what is left of it is harmless.
func FuzzCleaner(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b]0;t\x07\x9b\xc2\x9b\r\n"), true)
	f.Fuzz(func(t *testing.T, in []byte, colours bool) {
		out := cleaned(string(in), 7, colours)
		for i, r := range out {
			switch {
			case r == '\n' || r == '\t':
			case r == 0x1b && colours:
				rest := out[i:]
				end := strings.IndexByte(rest, 'm')
				if end < 2 || rest[1] != '[' || strings.Trim(rest[2:end], "0123456789;:") != "" {
					t.Fatalf("%q became %q", in, out)
				}
			case r < 0x20 || r >= 0x7f && r < 0xa0:
				t.Fatalf("%q became %q", in, out)
			}
		}
	})
}
