package lab

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"bulkhead/lab/rig"
	"bulkhead/lab/traffic"
	"bulkhead/lab/worm"
)

// playCommand is what every service and client of a lab runs.
func playCommand() *cobra.Command {
	return &cobra.Command{
		Use: rig.TrafficVerb + " SPEC", Hidden: true, Args: cobra.ExactArgs(1), Short: "Play a service of the lab",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := traffic.ReadSpec[traffic.Spec](args[0])
			if err != nil {
				return err
			}
			err = traffic.Run(cmd.Context(), spec)
			if interrupted(cmd.Context(), err) {
				return nil
			}
			return err
		},
	}
}

// wormCommand is the worm. It ends when its standard input does, and so with the process that started it.
func wormCommand() *cobra.Command {
	return &cobra.Command{
		Use: rig.WormVerb + " SPEC", Hidden: true, Args: cobra.ExactArgs(1), Short: "Try to reach everything in the lab",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := traffic.ReadSpec[worm.Spec](args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin) // any end of it is the end
				cancel()
			}()
			return worm.Run(ctx, spec)
		},
	}
}
