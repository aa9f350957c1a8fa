package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// app is everything a command may touch of the world around it.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	env    func(string) string
	now    func() time.Time
	// terminal reports whether a stream is a terminal: bars, colour, prompts
	// and redrawing happen only there.
	terminal func(stream any) bool
	// readSecret reads a line from the terminal without showing it.
	readSecret func() ([]byte, error)

	flags globalFlags
	// started is set when a command's own work begins: every error before it is
	// one of usage.
	started bool
}

// globalFlags are those that every command takes.
type globalFlags struct {
	server, tokenFile, caFile, context string
	output                             string
	noHeaders, quiet                   bool
}

// newApp returns the app over the process's own streams.
func newApp() *app {
	return &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		env: os.Getenv, now: time.Now,
		terminal: func(stream any) bool {
			f, ok := stream.(*os.File)
			return ok && term.IsTerminal(int(f.Fd()))
		},
		readSecret: func() ([]byte, error) { return term.ReadPassword(int(os.Stdin.Fd())) },
	}
}

// run executes one command line and returns the exit status.
func run(ctx context.Context, a *app, args []string) int {
	root := newRootCmd(a)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if !a.started && !errors.As(err, new(*failure)) {
		err = usage("%w", err)
	}
	return a.report(err)
}

func newRootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "otactl",
		Short: "Operate an otad server: firmware, rollouts, devices, shadows",
		Long: `otactl operates an otad server. Commands read "otactl NOUN VERB".

Data goes to standard output, progress and notes to standard error.
Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 denied,
6 unreachable, 7 condition not met (a watched rollout did not complete). What is
wrong in itself, such as stages that descend, is 2; what is refused as things
stand, such as a plan that has nobody to update, is 1: it may be right later.

The server comes from --server, OTACTL_SERVER or the current context, the
credentials from --token-file and --ca-file, OTACTL_TOKEN, OTACTL_TOKEN_FILE and
OTACTL_CA_FILE, or the context of that server ("otactl login").`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(cmd.ValidateFlagGroups(), checkFormat(a.flags.output)); err != nil {
				return err
			}
			a.started = true
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.flags.server, "server", "", "URL of the server's operator API (default "+defaultServer+")")
	f.StringVar(&a.flags.tokenFile, "token-file", "", "file that holds the API token")
	f.StringVar(&a.flags.caFile, "ca-file", "", "PEM file of the CA that the server's certificate must come from")
	f.StringVar(&a.flags.context, "context", "", "stored context to use instead of the current one")
	f.StringVarP(&a.flags.output, "output", "o", formatTable, "output format: "+strings.Join(formats, ", "))
	f.BoolVar(&a.flags.noHeaders, "no-headers", false, "leave out the column headers of tables")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "no notes and no progress on standard error")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	noun(root)
	root.AddCommand(commands(a)...)
	return root
}

// commands lists the nouns, in the order of the help text.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newLoginCmd(a), newContextCmd(a), newKeyCmd(a), newFirmwareCmd(a), newImageCmd(a),
		newRolloutCmd(a), newCommandCmd(a), newEventCmd(a), newWebhookCmd(a), newDeviceCmd(a), newGroupCmd(a), newTokenCmd(a), newIssuerCmd(a), newShadowCmd(a), newAgentCmd(a), newSimulateCmd(a), newDemoCmd(a), newDemoApplicationCmd(a), newVersionCmd(a),
	}
}

// noun makes a command that only holds others: alone it shows its help, with an
// unknown word it is a usage error.
func noun(cmd *cobra.Command, verbs ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(verbs...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	return cmd
}

func unknownCommand(cmd *cobra.Command, word string) error {
	err := usage("unknown command %q for %q", word, cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		return hint(err, "did you mean %q?", cmd.CommandPath()+" "+near[0])
	}
	return hint(err, "%s --help lists the commands", cmd.CommandPath())
}

// takes makes an argument check for exactly these words; one that ends in "..."
// takes one or more.
func takes(words ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		more := len(words) > 0 && strings.HasSuffix(words[len(words)-1], "...")
		if len(args) == len(words) || more && len(args) > len(words) {
			return nil
		}
		err := usage("%s takes no arguments, got %d", cmd.CommandPath(), len(args))
		if len(words) > 0 {
			err = usage("%s takes %s, got %d arguments", cmd.CommandPath(), strings.Join(words, " "), len(args))
		}
		return hint(err, "usage: %s", cmd.UseLine())
	}
}

// note writes one line for people.
func (a *app) note(format string, args ...any) {
	if !a.flags.quiet {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// warn writes one line that -q does not silence.
func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.stderr, "otactl: warning: "+format+"\n", args...)
}
