package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// ShowAppHelp prints what the program can do.
func ShowAppHelp(c *Context) error {
	a := c.App
	p := newPage(a.Writer)
	p.line("NAME:\n   %s - %s\n", a.Name, a.Usage)
	p.line("USAGE:\n   %s [global options] command [command options]\n", a.Name)
	p.line("VERSION:\n   %s\n", a.Version)
	p.commands(append(slices.Clone(a.Commands), a.help()))
	p.line("")
	p.flags("GLOBAL OPTIONS", append(slices.Clone(a.Flags), HelpFlag, versionFlag))
	return p.flush()
}

func showCommandHelp(w io.Writer, path string, c *Command) error {
	p := newPage(w)
	name := path
	if c.Usage != "" {
		name += " - " + c.Usage
	}
	p.line("NAME:\n   %s\n", name)
	p.line("USAGE:\n   %s\n", strings.TrimRight(path+" [command options] "+c.ArgsUsage, " "))
	if len(c.Subcommands) > 0 {
		p.commands(c.Subcommands)
		p.line("")
	}
	p.flags("OPTIONS", append(slices.Clone(c.Flags), HelpFlag))
	return p.flush()
}

// page is one text of help; tabs in it align what follows them.
type page struct{ *tabwriter.Writer }

func newPage(w io.Writer) page { return page{tabwriter.NewWriter(w, 1, 8, 2, ' ', 0)} }

// line prints a line. What fails is told by flush.
func (p page) line(format string, args ...any) { fmt.Fprintf(p.Writer, format+"\n", args...) }

func (p page) flush() error { return p.Flush() }

func (p page) commands(all []*Command) {
	p.line("COMMANDS:")
	for _, c := range all {
		if !c.Hidden {
			p.line("   %s\t%s", strings.Join(names(c.Name, c.Aliases), ", "), c.Usage)
		}
	}
}

func (p page) flags(title string, all []Flag) {
	p.line("%s:", title)
	for _, f := range all {
		if d := f.describe(); !d.hidden {
			p.line("   %s", d)
		}
	}
}

// String returns the flag's names, a tab, and what it is for.
func (d description) String() string {
	placeholder, usage := d.placeholder()
	var written []string
	for _, name := range d.names {
		dashed := "--" + name
		if len(name) == 1 {
			dashed = "-" + name
		}
		if !d.alone {
			dashed += " " + placeholder
		}
		written = append(written, dashed)
	}
	left := strings.Join(written, ", ")
	if d.repeated {
		left += " [ " + left + " ]"
	}
	if d.initial != "" && d.names[0] != "help" && d.names[0] != "version" {
		usage += " (default: " + d.initial + ")"
	}
	return left + "\t" + usage
}

// placeholder returns the name of the value, and the usage without backquotes.
func (d description) placeholder() (name, usage string) {
	before, rest, found := strings.Cut(d.usage, "`")
	name, after, closed := strings.Cut(rest, "`")
	if !found || !closed {
		return "value", d.usage
	}
	return name, before + name + after
}
