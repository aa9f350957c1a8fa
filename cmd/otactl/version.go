package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionView is what this program was built from.
type versionView struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of otactl", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			v := versionView{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Version = first(info.Main.Version, v.Version)
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			return printOne(a, v, v.Version, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "otactl %s %s %s\n", v.Version, v.Go, v.Platform)
				return err
			})
		},
	}
}
