package main

import (
	"errors"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func deleteCommand() *cli.Command {
	return &cli.Command{
		Name:      "delete",
		Usage:     "remove what is left of a container that has stopped",
		ArgsUsage: "<container-id>",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill it first; no error if it does not exist"},
		},
		Action: deleteContainer,
	}
}

func deleteContainer(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	force := c.Bool("force")
	ct, err := loadContainer(c)
	if err == nil {
		err = ct.Delete(c.Context, force)
	}
	if force && errors.Is(err, libvz.ErrNotExist) {
		return nil
	}
	return err
}
