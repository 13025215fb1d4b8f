package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// program returns a command line that notes which verb ran, and with what.
func program(out *strings.Builder, got **Context) *App {
	note := func(c *Context) error { *got = c; return nil }
	return &App{
		Name: "prog", Usage: "does things", Version: "1.2",
		Flags: []Flag{
			&StringFlag{Name: "root", Value: "/r", Usage: "`DIR` of state"},
			&BoolFlag{Name: "debug"},
		},
		Before:       func(*Context) error { return nil },
		Action:       note,
		OnUsageError: func(_ *Context, err error, _ bool) error { return err },
		PrintVersion: func(c *Context) { out.WriteString("version " + c.App.Version) },
		Writer:       out,
		Commands: []*Command{
			{
				Name: "run", Usage: "run it", ArgsUsage: "<id>", Action: note,
				Flags: []Flag{
					&BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not wait"},
					&IntFlag{Name: "number", Aliases: []string{"n"}, Value: -1, Usage: "so `MANY`"},
					&Int64Flag{Name: "long"}, &Float64Flag{Name: "cpus"},
					&DurationFlag{Name: "every", Value: 5 * time.Second},
					&StringSliceFlag{Name: "env", Aliases: []string{"e"}, KeepSpace: true, Usage: "set `NAME`"},
					&StringSliceFlag{Name: "net"},
					&StringFlag{Name: "secret", Hidden: true},
				},
				Subcommands: []*Command{{Name: "below", Usage: "deeper", Action: note, Flags: []Flag{&StringFlag{Name: "own"}}}},
			},
			{Name: "raw", Hidden: true, SkipFlagParsing: true, Action: note},
		},
	}
}

func try(t *testing.T, line ...string) (*Context, string, error) {
	t.Helper()
	var (
		out strings.Builder
		got *Context
	)
	err := program(&out, &got).Run(context.Background(), append([]string{"prog"}, line...))
	return got, out.String(), err
}

func TestFlagsOfAVerb(t *testing.T) {
	c, _, err := try(t, "--debug", "run", "-d", "-n", "0x10", "--long=-3", "--cpus", "1.5", "-every", "2m",
		"--env", " A=1,2 ", "-e", "B", "--net", " x ", "--", "--id", "-d")
	if err != nil {
		t.Fatal(err)
	}
	for _, is := range []struct {
		what string
		ok   bool
	}{
		{"verb", c.Command.Name == "run"},
		{"alias sets the name", c.Bool("detach") && c.IsSet("detach")},
		{"and itself", c.Bool("d") && c.IsSet("d")},
		{"the name sets the alias", c.IsSet("e") && c.IsSet("env")},
		{"numbers", c.Int("number") == 16 && c.Int64("long") == -3 && c.Float64("cpus") == 1.5},
		{"a time", c.Duration("every") == 2*time.Minute},
		{"commas and spaces stay", slices.Equal(c.StringSlice("env"), []string{" A=1,2 ", "B"})},
		{"spaces go", slices.Equal(c.StringSlice("net"), []string{"x"})},
		{"global flags", c.Bool("debug") && c.IsSet("debug") && c.String("root") == "/r" && !c.IsSet("root")},
		{"not given", c.String("secret") == "" && !c.IsSet("secret")},
		{"not known", !c.IsSet("nonsense") && c.String("nonsense") == "" && c.StringSlice("nonsense") == nil},
		{"arguments", slices.Equal(c.Args().Slice(), []string{"--id", "-d"}) && c.NArg() == 2 && c.Args().Get(2) == ""},
		{"the rest", slices.Equal(c.Args().Tail(), []string{"-d"})},
	} {
		if !is.ok {
			t.Errorf("%s is wrong", is.what)
		}
	}
	if err := c.Set("root", "/other"); err != nil || c.String("root") != "/other" {
		t.Errorf("root is %q, %v", c.String("root"), err)
	}
	if err := c.Set("nonsense", "x"); err == nil {
		t.Error("a flag that does not exist was set")
	}
}

func TestDefaults(t *testing.T) {
	c, _, err := try(t, "run", "id")
	if err != nil || c.Int("number") != -1 || c.Duration("every") != 5*time.Second || c.NumFlags() != 0 {
		t.Errorf("number %d, every %v, %d flags, %v", c.Int("number"), c.Duration("every"), c.NumFlags(), err)
	}
}

func TestWhichVerbRuns(t *testing.T) {
	for line, want := range map[string]string{
		"": "prog", "nonsense run": "prog", "run": "run", "run below --own x": "below", "run id below": "run",
		"raw --help -x": "raw",
	} {
		c, _, err := try(t, strings.Fields(line)...)
		if err != nil || c == nil || c.Command.Name != want {
			t.Errorf("%q: %+v, %v, want %s", line, c, err, want)
		}
	}
	c, _, _ := try(t, "run", "-d", "below", "--own", "x")
	if !c.Parent().Bool("detach") || c.NumFlags() != 1 || c.String("own") != "x" {
		t.Errorf("a sub-verb does not know what came before it")
	}
	if c, _, _ := try(t, "raw", "--help", "-x"); !slices.Equal(c.Args(), []string{"--help", "-x"}) {
		t.Errorf("raw got %q", c.Args())
	}
}

func TestUsageErrors(t *testing.T) {
	for line, want := range map[string]string{
		"--bogus":        "flag provided but not defined: -bogus",
		"--root":         "flag needs an argument: -root",
		"run --bogus":    "flag provided but not defined: -bogus",
		"run -n x":       `invalid value "x" for flag -n: parse error`,
		"run --every 5":  `invalid value "5" for flag -every: parse error`,
		"run below -x":   "flag provided but not defined: -x",
		"run --detach=x": `invalid boolean value "x" for -detach: parse error`,
	} {
		c, out, err := try(t, strings.Fields(line)...)
		if err == nil || err.Error() != want || c != nil || out != "" {
			t.Errorf("%q: %v and %q, want %s", line, err, out, want)
		}
	}
	if _, _, err := try(t, "help", "nonsense"); !errors.Is(err, ErrTopic) {
		t.Errorf("help for nonsense: %v", err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	const all = `NAME:
   prog - does things

USAGE:
   prog [global options] command [command options]

VERSION:
   1.2

COMMANDS:
   run      run it
   help, h  Shows a list of commands or help for one command

GLOBAL OPTIONS:
   --root DIR     DIR of state (default: "/r")
   --debug         (default: false)
   --help, -h     show help
   --version, -v  print the version
`
	const verb = `NAME:
   prog run - run it

USAGE:
   prog run [command options] <id>

COMMANDS:
   below  deeper

OPTIONS:
   --detach, -d                           do not wait (default: false)
   --number MANY, -n MANY                 so MANY (default: -1)
   --long value                            (default: 0)
   --cpus value                            (default: 0)
   --every value                           (default: 5s)
   --env NAME, -e NAME [ --env NAME, -e NAME ]  set NAME
   --net value [ --net value ]            
   --help, -h                             show help
`
	for line, want := range map[string]string{
		"--help": all, "-h": all, "help": all, "h": all, "--help run": all,
		"run --help": verb, "run -h id": verb, "help run": verb,
		"--version": "version 1.2", "-v run": "version 1.2",
	} {
		c, out, err := try(t, strings.Fields(line)...)
		if err != nil || c != nil || squeeze(out) != squeeze(want) {
			t.Errorf("%q: %v\n%s", line, err, out)
		}
	}
}

// squeeze makes the widths of columns alike.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}
