package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// unlimited lets a verb take any number of arguments and hand them on.
const unlimited = -1

// checkArgs checks the arguments that are no flags. Every verb calls it first,
// because the library ends flags at the first argument and would let a verb
// overlook what comes after: `delete ID --force` must not delete without force.
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
			return flagAfterID(verb, usage, arg)
		}
	}
	if len(args) > most {
		return &usageError{msg: fmt.Sprintf("%s: unexpected argument %q", verb, args[most]), hint: synopsis}
	}
	return nil
}

func flagAfterID(verb, usage, arg string) error {
	hint := fmt.Sprintf("flags go before the id: vzrun %s %s %s", verb, arg, usage)
	if signal, err := parseSignal(strings.TrimLeft(arg, "-")); verb == "kill" && err == nil {
		hint = fmt.Sprintf("a signal has no dash: vzrun kill <container-id> %d", signal)
	}
	return &usageError{msg: fmt.Sprintf("%s: flag %s after the container id", verb, arg), hint: hint}
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
