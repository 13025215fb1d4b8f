package main

import (
	"encoding/json"

	"github.com/vzrun/vzrun/internal/cli"
)

func stateCommand() *cli.Command {
	return &cli.Command{
		Name:      "state",
		Usage:     "print the state of a container as JSON",
		ArgsUsage: "<container-id>",
		Action:    printState,
	}
}

func printState(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	state, err := ct.State()
	if err != nil {
		return err
	}
	return printJSON(c, state, "  ")
}

// printJSON writes a value for programs and, if indented, for people.
func printJSON(c *cli.Context, value any, indent string) error {
	encoder := json.NewEncoder(c.App.Writer)
	encoder.SetIndent("", indent)
	return encoder.Encode(value)
}
