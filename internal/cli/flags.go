package cli

import (
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Flag is one of the kinds below. Usage names the value in backquotes; Value is
// the default.
type Flag interface {
	// Names returns the name and its aliases.
	Names() []string
	bind(*flag.FlagSet)
	describe() description
}

// description is what help says of a flag.
type description struct {
	names           []string
	usage, initial  string // initial "" = there is none to be told
	alone, repeated bool   // takes no value; may be given again
	hidden          bool
}

type (
	// BoolFlag takes no value, or one behind an equals sign.
	BoolFlag struct {
		Name, Usage string
		Aliases     []string
		Value       bool
		Hidden      bool
	}
	// StringFlag takes any value.
	StringFlag struct {
		Name, Usage string
		Aliases     []string
		Value       string
		Hidden      bool
	}
	// IntFlag takes a whole number, in decimal, or as 0x or 0 tell.
	IntFlag struct {
		Name, Usage string
		Aliases     []string
		Value       int
		Hidden      bool
	}
	// Int64Flag is an IntFlag of 64 bits on every machine.
	Int64Flag struct {
		Name, Usage string
		Aliases     []string
		Value       int64
		Hidden      bool
	}
	// Float64Flag takes a number.
	Float64Flag struct {
		Name, Usage string
		Aliases     []string
		Value       float64
		Hidden      bool
	}
	// DurationFlag takes a time as time.ParseDuration does.
	DurationFlag struct {
		Name, Usage string
		Aliases     []string
		Value       time.Duration
		Hidden      bool
	}
	// StringSliceFlag may be repeated. Spaces around a value are dropped unless
	// KeepSpace says otherwise; commas are part of it.
	StringSliceFlag struct {
		Name, Usage string
		Aliases     []string
		KeepSpace   bool
		Hidden      bool
	}
)

func names(name string, aliases []string) []string { return append([]string{name}, aliases...) }

// Names implements Flag, as the following do.
func (f *BoolFlag) Names() []string        { return names(f.Name, f.Aliases) }
func (f *StringFlag) Names() []string      { return names(f.Name, f.Aliases) }
func (f *IntFlag) Names() []string         { return names(f.Name, f.Aliases) }
func (f *Int64Flag) Names() []string       { return names(f.Name, f.Aliases) }
func (f *Float64Flag) Names() []string     { return names(f.Name, f.Aliases) }
func (f *DurationFlag) Names() []string    { return names(f.Name, f.Aliases) }
func (f *StringSliceFlag) Names() []string { return names(f.Name, f.Aliases) }

// bindAll registers one value, which variable makes under the first name, under
// all of them.
func bindAll(set *flag.FlagSet, names []string, variable func(name string)) {
	variable(names[0])
	for _, alias := range names[1:] {
		set.Var(set.Lookup(names[0]).Value, alias, "")
	}
}

func (f *BoolFlag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.Bool(name, f.Value, "") })
}

func (f *StringFlag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.String(name, f.Value, "") })
}

func (f *IntFlag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.Int(name, f.Value, "") })
}

func (f *Int64Flag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.Int64(name, f.Value, "") })
}

func (f *Float64Flag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.Float64(name, f.Value, "") })
}

func (f *DurationFlag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.Duration(name, f.Value, "") })
}

func (f *StringSliceFlag) bind(set *flag.FlagSet) {
	bindAll(set, f.Names(), func(name string) { set.Var(&list{keepSpace: f.KeepSpace}, name, "") })
}

// list is the value of a StringSliceFlag.
type list struct {
	values    []string
	keepSpace bool
}

func (l *list) String() string { return strings.Join(l.values, " ") }
func (l *list) Get() any       { return l.values }

func (l *list) Set(s string) error {
	if !l.keepSpace {
		s = strings.TrimSpace(s)
	}
	l.values = append(l.values, s)
	return nil
}

func (f *BoolFlag) describe() description {
	return description{names: f.Names(), usage: f.Usage, initial: strconv.FormatBool(f.Value), alone: true, hidden: f.Hidden}
}

func (f *StringFlag) describe() description {
	d := description{names: f.Names(), usage: f.Usage, hidden: f.Hidden}
	if f.Value != "" {
		d.initial = strconv.Quote(f.Value)
	}
	return d
}

func (f *IntFlag) describe() description {
	return description{names: f.Names(), usage: f.Usage, initial: strconv.Itoa(f.Value), hidden: f.Hidden}
}

func (f *Int64Flag) describe() description {
	return description{names: f.Names(), usage: f.Usage, initial: strconv.FormatInt(f.Value, 10), hidden: f.Hidden}
}

func (f *Float64Flag) describe() description {
	return description{names: f.Names(), usage: f.Usage, initial: fmt.Sprint(f.Value), hidden: f.Hidden}
}

func (f *DurationFlag) describe() description {
	return description{names: f.Names(), usage: f.Usage, initial: f.Value.String(), hidden: f.Hidden}
}

func (f *StringSliceFlag) describe() description {
	return description{names: f.Names(), usage: f.Usage, repeated: true, hidden: f.Hidden}
}
