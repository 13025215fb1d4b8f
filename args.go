package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vzrun/vzrun/internal/cli"
)

// unlimited lets a verb take any number of arguments and hand them on.
const unlimited = -1

// flagsFirst moves the flags of a verb before its other arguments, where the
// library looks for them: runc takes them after the id, too, so that there are
// scripts and engines that write `delete ID --force`. Whatever follows "--" stays,
// and so do arguments that are handed on. What is no flag of the verb stays where
// it is, to be refused.
func flagsFirst(app *cli.App, args []string) []string {
	at := verbAt(app.Flags, args)
	if at >= len(args) {
		return args
	}
	verb := app.Command(args[at])
	if verb == nil || handsOn(verb.Name) {
		return args
	}
	// A word alone behind the verb is an id, whatever else it means.
	if at+2 < len(args) {
		for _, sub := range verb.Subcommands {
			if sub.HasName(args[at+1]) {
				verb, at = sub, at+1
				break
			}
		}
	}
	known := append(slices.Clone(verb.Flags), cli.HelpFlag)
	flags, others := []string(nil), []string(nil)
	for rest := args[at+1:]; len(rest) > 0; {
		if rest[0] == "--" {
			flags, others = append(flags, "--"), append(others, rest[1:]...)
			break
		}
		n := flagLength(known, rest)
		switch {
		case n > 0:
			flags = append(flags, rest[:n]...)
		case len(others) == 0 && isDashed(rest[0]):
			return args // unknown: the library says so
		default:
			n = 1
			others = append(others, rest[0])
		}
		rest = rest[n:]
	}
	return slices.Concat(args[:at+1], flags, others)
}

// verbAt returns the index of the first argument that is no global flag.
func verbAt(global []cli.Flag, args []string) int {
	at := min(1, len(args))
	for at < len(args) && isDashed(args[at]) {
		n := flagLength(global, args[at:])
		if n == 0 { // "--", or help, or unknown
			return len(args)
		}
		at += n
	}
	return at
}

// isServed tells whether a program with the verbs of app can do what args ask for.
// Help lists all verbs, so that it is served by a program that has them all.
func isServed(app *cli.App, args []string) bool {
	at := verbAt(app.Flags, args)
	if at >= len(args) {
		return asksVersion(app.Flags, args)
	}
	return args[at] != "help" && args[at] != "h" && app.Command(args[at]) != nil
}

// asksVersion tells whether --version comes after nothing but global flags.
func asksVersion(global []cli.Flag, args []string) bool {
	last := len(args) - 1
	if last < 1 || args[last] != "--version" && args[last] != "-v" {
		return false
	}
	// It may be the value of the flag before it.
	return verbAt(global, append(slices.Clone(args[:last]), "verb")) == last
}

func isDashed(arg string) bool { return len(arg) > 1 && arg[0] == '-' }

// flagLength returns how many of args the flag at their beginning takes, 0 where
// there is none of those known.
func flagLength(known []cli.Flag, args []string) int {
	if !isDashed(args[0]) {
		return 0
	}
	name, _, hasValue := strings.Cut(strings.TrimPrefix(args[0][1:], "-"), "=")
	for _, f := range known {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		if _, alone := f.(*cli.BoolFlag); alone || hasValue || len(args) == 1 {
			return 1
		}
		return 2
	}
	return 0
}

// handsOn tells whether a verb's arguments belong to another program.
func handsOn(verb string) bool { return slices.Contains([]string{"exec", "ps", "relay-rsync"}, verb) }

// checkArgs checks the arguments that are no flags. Every verb calls it first,
// because the library ends flags at the first argument and would let a verb
// overlook what comes after.
func checkArgs(c *cli.Context, least, most int) error {
	return checkPositionals(c.Command.Name, c.Command.ArgsUsage, c.Args().Slice(), least, most)
}

func checkPositionals(verb, usage string, args []string, least, most int) error {
	synopsis := strings.TrimRight(fmt.Sprintf("usage: vzrun %s [flags] %s", verb, usage), " ")
	if len(args) < least {
		missing := "the container id is missing"
		if len(args) > 0 {
			missing = "an argument is missing"
		}
		return &usageError{msg: verb + ": " + missing, hint: synopsis}
	}
	if most == unlimited {
		return nil
	}
	for i, arg := range args {
		// The first one may begin with a dash: it was written after "--".
		if i > 0 && strings.HasPrefix(arg, "-") {
			return unknownFlag(verb, arg)
		}
	}
	if len(args) > most {
		return &usageError{msg: fmt.Sprintf("%s: unexpected argument %q", verb, args[most]), hint: synopsis}
	}
	return nil
}

func unknownFlag(verb, arg string) error {
	hint := fmt.Sprintf("vzrun %s --help lists the flags", verb)
	if signal, err := parseSignal(strings.TrimLeft(arg, "-")); verb == "kill" && err == nil {
		hint = fmt.Sprintf("a signal has no dash: vzrun kill <container-id> %d", signal)
	}
	return &usageError{msg: fmt.Sprintf("%s: unknown flag %s", verb, arg), hint: hint}
}

// formatFlag is the --format that listing verbs share.
func formatFlag(initial string) cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: initial, Usage: "`FORMAT` of the output: " + initial + " or json"}
}

func wantsJSON(c *cli.Context, other string) (bool, error) {
	switch format := c.String("format"); format {
	case "json":
		return true, nil
	case other:
		return false, nil
	default:
		return false, &usageError{msg: fmt.Sprintf("%s: --format %q is neither %s nor json", c.Command.Name, format, other)}
	}
}
