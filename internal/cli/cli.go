// Package cli is a command line of verbs, each with flags, on the standard
// library's package flag. It hides how flags are found and how help is laid out.
//
// It has what the verbs of vzrun use and no more: the well-known libraries print
// help with text/template, for which the linker keeps every exported method of
// the program, and vzrun is started several times for each container.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
)

// ErrTopic is what help returns, wrapped, if there is no such verb.
var ErrTopic = errors.New("no help topic")

// App is a program. Help, version and usage errors are told apart before any
// verb runs; what an Action returns is handed on as it is.
type App struct {
	Name, Usage, Version string
	Flags                []Flag // before the verb
	Commands             []*Command
	// Before runs ahead of every verb; its error ends the run.
	Before func(*Context) error
	// Action runs where the first argument is no verb.
	Action func(*Context) error
	// OnUsageError makes the error of a command line that cannot be parsed.
	OnUsageError func(c *Context, err error, isSubcommand bool) error
	// PrintVersion serves --version.
	PrintVersion func(*Context)
	// Writer is where help and version go; nil = standard output.
	Writer io.Writer
}

// Command is a verb.
type Command struct {
	Name, Usage, ArgsUsage string
	Aliases                []string
	Flags                  []Flag
	Subcommands            []*Command
	Action                 func(*Context) error
	// Hidden leaves it out of help.
	Hidden bool
	// SkipFlagParsing makes an argument of everything.
	SkipFlagParsing bool
}

// HasName tells whether name is the verb's name or an alias.
func (c *Command) HasName(name string) bool {
	return c.Name == name || slices.Contains(c.Aliases, name)
}

// HelpFlag is a flag of every verb and of the program itself.
var HelpFlag Flag = &BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show help"}

var versionFlag Flag = &BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"}

// Command returns the verb of that name, nil if there is none.
func (a *App) Command(name string) *Command { return find(append(a.Commands, a.help()), name) }

func find(commands []*Command, name string) *Command {
	if i := slices.IndexFunc(commands, func(c *Command) bool { return c.HasName(name) }); i >= 0 {
		return commands[i]
	}
	return nil
}

func (a *App) help() *Command {
	return &Command{
		Name: "help", Aliases: []string{"h"}, Usage: "Shows a list of commands or help for one command",
		Action: func(c *Context) error {
			if c.NArg() == 0 {
				return ShowAppHelp(c)
			}
			topic := find(a.Commands, c.Args().First())
			if topic == nil {
				return fmt.Errorf("%w for %q", ErrTopic, c.Args().First())
			}
			return showCommandHelp(a.Writer, a.Name+" "+topic.Name, topic)
		},
	}
}

// Run runs the verb that args ask for; args begin with the program's name.
func (a *App) Run(ctx context.Context, args []string) error {
	if a.Writer == nil {
		a.Writer = os.Stdout
	}
	global := &Context{Context: ctx, App: a, Command: &Command{Name: a.Name}}
	err := global.parse(append(slices.Clone(a.Flags), HelpFlag, versionFlag), args[min(1, len(args)):])
	switch {
	case err != nil:
		return a.OnUsageError(global, err, false)
	case global.Bool("help"):
		return ShowAppHelp(global)
	case global.Bool("version"):
		a.PrintVersion(global)
		return nil
	}
	if err := a.Before(global); err != nil {
		return err
	}
	if verb := a.Command(global.Args().First()); verb != nil {
		return verb.run(global, a.Name)
	}
	return a.Action(global)
}

// run runs the verb, or the sub-verb that its first argument names.
func (c *Command) run(parent *Context, path string) error {
	own := &Context{Context: parent.Context, App: parent.App, Command: c, parent: parent}
	path += " " + c.Name
	arguments := parent.Args()[1:]
	if c.SkipFlagParsing {
		own.set, own.args = flag.NewFlagSet(c.Name, flag.ContinueOnError), arguments
		return c.Action(own)
	}
	switch err := own.parse(append(slices.Clone(c.Flags), HelpFlag), arguments); {
	case err != nil:
		return own.App.OnUsageError(own, err, true)
	case own.Bool("help"):
		return showCommandHelp(own.App.Writer, path, c)
	}
	if sub := find(c.Subcommands, own.Args().First()); sub != nil {
		return sub.run(own, path)
	}
	return c.Action(own)
}
