package main

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:      "events",
		Usage:     "print what a container uses, and when its memory runs out, as JSON lines",
		ArgsUsage: "<container-id> | --follow [<container-id>]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Usage: "print what happens to migrations of this host instead, until interrupted"},
			&cli.DurationFlag{Name: "interval", Value: 5 * time.Second, Usage: "print the usage every `TIME`"},
			&cli.BoolFlag{Name: "stats", Usage: "print the usage once"},
		},
		Action: events,
	}
}

func events(c *cli.Context) error {
	if c.Bool("follow") {
		return followMigrations(c)
	}
	if err := checkArgs(c, 1, 1); err != nil {
		return err
	}
	interval := c.Duration("interval")
	if interval <= 0 {
		return &usageError{msg: "events: duration interval must be greater than 0"}
	}
	ct, err := loadContainer(c)
	if err != nil {
		return err
	}
	out := json.NewEncoder(c.App.Writer)
	if c.Bool("stats") {
		usage, err := ct.Usage()
		if err != nil {
			return err
		}
		return out.Encode(event{Type: "stats", ID: ct.ID(), Data: usage})
	}
	return follow(c, ct, interval, out)
}

// followMigrations prints the events of all migrations, or of one container's.
func followMigrations(c *cli.Context) error {
	if err := checkArgs(c, 0, 1); err != nil {
		return err
	}
	if c.Bool("stats") || c.IsSet("interval") {
		return &usageError{msg: "events: --follow is for migrations, --stats and --interval are for what a container uses"}
	}
	host, err := openHost(c)
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(c)
	defer cancel()
	out, id := json.NewEncoder(c.App.Writer), c.Args().First()
	return host.FollowMigrations(ctx, func(e libvz.MigrationEvent) error {
		if id != "" && e.ID != id {
			return nil
		}
		return out.Encode(e)
	})
}

// event is a line of output, as engines know it from runc.
type event struct {
	Type string       `json:"type"`
	ID   string       `json:"id"`
	Data *libvz.Usage `json:"data,omitempty"`
}

// follow prints events until the container ends.
func follow(c *cli.Context, ct *libvz.Container, interval time.Duration, out *json.Encoder) error {
	kills, err := ct.OutOfMemory(c.Context)
	if err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		e := event{ID: ct.ID()}
		select {
		case _, ok := <-kills:
			if !ok {
				return nil
			}
			e.Type = "oom"
		case <-tick.C:
			usage, err := ct.Usage()
			if errors.Is(err, libvz.ErrStatus) {
				return drain(kills, ct.ID(), out)
			}
			if err != nil {
				logrus.Error(err)
				continue
			}
			e.Type, e.Data = "stats", usage
		}
		if err := out.Encode(e); err != nil {
			return err
		}
	}
}

// drain prints the kills of a container that has ended, perhaps by one.
func drain(kills <-chan struct{}, id string, out *json.Encoder) error {
	for {
		select {
		case _, ok := <-kills:
			if !ok {
				return nil
			}
			if err := out.Encode(event{Type: "oom", ID: id}); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}
