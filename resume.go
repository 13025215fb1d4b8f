package main

import (
	"github.com/vzrun/vzrun/internal/cli"
)

func resumeCommand() *cli.Command {
	return &cli.Command{
		Name:      "resume",
		Usage:     "let a container go on that pause froze",
		ArgsUsage: "<container-id>",
		Action:    resume,
	}
}

func resume(c *cli.Context) error {
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	return ct.Resume(c.Context)
}
