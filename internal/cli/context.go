package cli

import (
	"context"
	"flag"
	"io"
	"slices"
	"time"
)

// Context is what one run of a verb was given. A flag is looked for in the
// verb's flags, then in those before it.
type Context struct {
	context.Context
	App     *App
	Command *Command

	parent *Context
	set    *flag.FlagSet
	args   Args
}

// Args are the arguments that are no flags.
type Args []string

// First returns the first argument, "" if there is none.
func (a Args) First() string { return a.Get(0) }

// Get returns argument n, "" if there are not so many.
func (a Args) Get(n int) string {
	if n >= len(a) {
		return ""
	}
	return a[n]
}

// Tail returns all but the first.
func (a Args) Tail() []string { return a[min(1, len(a)):] }

// Slice returns a copy.
func (a Args) Slice() []string { return slices.Clone(a) }

// Len returns how many there are.
func (a Args) Len() int { return len(a) }

func (c *Context) parse(flags []Flag, args []string) error {
	c.set = flag.NewFlagSet(c.Command.Name, flag.ContinueOnError)
	c.set.SetOutput(io.Discard) // the error is returned
	for _, f := range flags {
		f.bind(c.set)
	}
	err := c.set.Parse(args)
	c.args = c.set.Args()
	return err
}

// lookup returns the innermost flag of that name, nil if there is none.
func (c *Context) lookup(name string) *flag.Flag {
	for ; c != nil; c = c.parent {
		if f := c.set.Lookup(name); f != nil {
			return f
		}
	}
	return nil
}

func value[T any](c *Context, name string) (v T) {
	f := c.lookup(name)
	if f == nil {
		return v
	}
	if got, ok := f.Value.(flag.Getter).Get().(T); ok {
		v = got
	}
	return v
}

// String returns the value of a StringFlag. This and the following return the
// zero value where there is no such flag.
func (c *Context) String(name string) string { return value[string](c, name) }

// Bool returns the value of a BoolFlag.
func (c *Context) Bool(name string) bool { return value[bool](c, name) }

// Int returns the value of an IntFlag.
func (c *Context) Int(name string) int { return value[int](c, name) }

// Int64 returns the value of an Int64Flag.
func (c *Context) Int64(name string) int64 { return value[int64](c, name) }

// Float64 returns the value of a Float64Flag.
func (c *Context) Float64(name string) float64 { return value[float64](c, name) }

// Duration returns the value of a DurationFlag.
func (c *Context) Duration(name string) time.Duration { return value[time.Duration](c, name) }

// StringSlice returns the values of a StringSliceFlag, in their order.
func (c *Context) StringSlice(name string) []string { return value[[]string](c, name) }

// IsSet tells whether the command line has the flag, under any of its names.
func (c *Context) IsSet(name string) bool {
	for ; c != nil; c = c.parent {
		f := c.set.Lookup(name)
		if f == nil {
			continue
		}
		isSet := false
		c.set.Visit(func(other *flag.Flag) { isSet = isSet || other.Value == f.Value })
		return isSet
	}
	return false
}

// Set gives the innermost flag of that name a value, which must be one of its kind.
func (c *Context) Set(name, value string) error {
	for at := c; at != nil; at = at.parent {
		if at.set.Lookup(name) != nil {
			return at.set.Set(name, value)
		}
	}
	return c.set.Set(name, value) // says that there is none
}

// Args returns what follows the flags.
func (c *Context) Args() Args { return c.args }

// NArg returns how many arguments there are.
func (c *Context) NArg() int { return len(c.args) }

// NumFlags returns how many of the verb's own flags the command line has.
func (c *Context) NumFlags() int { return c.set.NFlag() }

// Parent returns the context of the verb that this is a sub-verb of.
func (c *Context) Parent() *Context { return c.parent }
