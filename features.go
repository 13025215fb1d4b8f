package main

import (
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func featuresCommand() *cli.Command {
	return &cli.Command{
		Name:   "features",
		Usage:  "print what of the runtime specification is supported, as JSON",
		Action: printFeatures,
	}
}

func printFeatures(c *cli.Context) error {
	if err := checkArgs(c, 0, 0); err != nil {
		return err
	}
	features := libvz.Features()
	if features.Annotations == nil {
		features.Annotations = map[string]string{}
	}
	features.Annotations["org.vzrun.version"] = version
	return printJSON(c, features, "    ")
}
