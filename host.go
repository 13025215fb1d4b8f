package main

import (
	"path/filepath"
	"strconv"

	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// openHost opens the state directory that the global flags name. What libvz
// warns about goes to the log.
func openHost(c *cli.Context) (*libvz.Host, error) {
	return openHostWith(c, func(e libvz.Event) {
		if e.Warning != "" {
			logrus.Warn(e.Warning)
		}
	})
}

func openHostWith(c *cli.Context, onEvent func(libvz.Event)) (*libvz.Host, error) {
	rootless, err := parseRootless(c.String("rootless"))
	if err != nil {
		return nil, err
	}
	return libvz.Open(libvz.Options{
		Rootless:      rootless,
		Root:          c.String("root"),
		IDs:           c.String("id-record"),
		SystemdCgroup: c.Bool("systemd-cgroup"),
		Criu:          c.String("criu"),
		OnEvent:       onEvent,
		LogLevel:      strconv.Itoa(int(logrus.GetLevel())),
	})
}

// loadContainer finds the container that the first argument names.
func loadContainer(c *cli.Context) (*libvz.Container, error) {
	host, err := openHost(c)
	if err != nil {
		return nil, err
	}
	return host.Load(c.Args().First())
}

func loadContainerWith(c *cli.Context, onEvent func(libvz.Event)) (*libvz.Container, error) {
	host, err := openHostWith(c, onEvent)
	if err != nil {
		return nil, err
	}
	return host.Load(c.Args().First())
}

func bundleFlag() cli.Flag {
	return &cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "`DIR` with config.json (default: the current directory)"}
}

// bundlePath returns the bundle, absolute, since libvz remembers it.
func bundlePath(c *cli.Context) (string, error) {
	return filepath.Abs(c.String("bundle"))
}
