package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/berth-io/berth/cmd/berth/internal/doctor"
)

func doctorCommand(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this host can run pods, and say what to do",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return err
			}
			findings := doctor.Examine(c)
			if structured(output) {
				return encode(cmd.OutOrStdout(), output, findings)
			}
			t := newTable(cmd.OutOrStdout())
			t.row("CHECK", "VERDICT", "FOUND", "WHAT TO DO")
			failed := false
			for _, f := range findings {
				t.row(f.Check, string(f.Verdict), f.Detail, f.Advice)
				failed = failed || f.Verdict == doctor.Fail
			}
			if err := t.flush(); err != nil {
				return err
			}
			if failed {
				return errors.New("this host cannot run pods before what failed is mended")
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return cmd
}
