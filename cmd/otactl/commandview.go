package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// resultView is what became of a command on one device, as -o json shows it.
type resultView struct {
	Device      string      `json:"device"`
	Attempt     int32       `json:"attempt"`
	Status      string      `json:"status"`
	Class       string      `json:"class,omitempty"`
	Reason      string      `json:"reason,omitempty"`
	ExitCode    string      `json:"exitCode,omitempty"`
	Output      string      `json:"output,omitempty"`
	OutputBytes string      `json:"outputBytes,omitempty"` // of the whole output; Output may be a part
	Upload      *uploadView `json:"upload,omitempty"`
	FinishedAt  *time.Time  `json:"finishedAt,omitempty"`
}

func newResultView(e *otadv1.Execution) resultView {
	d := e.GetDetails()
	return resultView{
		Device: e.GetDeviceId(), Attempt: e.GetAttempt(), Status: e.GetStatus(), Class: e.GetClass(), Reason: e.GetReason(),
		ExitCode: d[ota.DetailExit], Output: ota.Output(d), OutputBytes: d[ota.DetailOutputBytes], FinishedAt: when(e.GetFinishedAt()),
	}
}

// commandShow is a command with its results.
type commandShow struct {
	rolloutView
	Results []resultView `json:"results"`
}

// uploadView is what a device brought, as -o json shows it.
type uploadView struct {
	Command    string     `json:"command"` // its id
	Device     string     `json:"device"`
	Attempt    int32      `json:"attempt"`
	Bytes      int64      `json:"bytes"`
	UploadedAt *time.Time `json:"uploadedAt"`
}

// results reads what became of a command on each device.
func (c *client) results(ctx context.Context, id string) ([]resultView, error) {
	uploads, err := c.uploads(ctx, &otadv1.ListUploadsRequest{RolloutId: id})
	if err != nil {
		return nil, err
	}
	brought := map[string]uploadView{}
	for _, u := range uploads {
		brought[fmt.Sprint(u.Device, " ", u.Attempt)] = u
	}
	results := []resultView{}
	err = c.eachExecution(ctx, &otadv1.ListExecutionsRequest{RolloutId: id}, func(e *otadv1.Execution) bool {
		v := newResultView(e)
		if u, ok := brought[fmt.Sprint(v.Device, " ", v.Attempt)]; ok {
			v.Upload = &u
		}
		results = append(results, v)
		return true
	})
	return results, err
}

// uploads reads every page of a list.
func (c *client) uploads(ctx context.Context, req *otadv1.ListUploadsRequest) ([]uploadView, error) {
	var views []uploadView
	req.PageSize = pageSize
	for {
		resp, err := call(ctx, c.commands.ListUploads, req)
		if err != nil {
			return nil, err
		}
		for _, u := range resp.GetUploads() {
			views = append(views, uploadView{u.GetRolloutId(), u.GetDeviceId(), u.GetAttempt(), u.GetBytes(), when(u.GetUploadedAt())})
		}
		if resp.GetNextPageToken() == "" {
			return views, nil
		}
		req.PageToken = resp.GetNextPageToken()
	}
}

func newCommandShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a command and what became of it on each device", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.rollouts.GetRollout, &otadv1.GetRolloutRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if resp.GetRollout().GetSpec().GetCommand() == nil {
				return hint(fail(exitNotFound, "%s is no command", args[0]), "otactl rollout show %s", args[0])
			}
			results, err := c.results(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			v := commandShow{newRolloutView(resp.GetRollout()), results}
			return printOne(a, v, v.ID, a.showCommand(v))
		},
	}
}

// maxShown is how many results show lists in a table.
const maxShown = 100

func (a *app) showCommand(v commandShow) func(io.Writer) error {
	return func(w io.Writer) error {
		if err := a.showRollout(v.rolloutView)(w); err != nil || len(v.Results) == 0 {
			return err
		}
		var rows [][]string
		for _, r := range v.Results[:min(maxShown, len(v.Results))] {
			upload := ""
			if r.Upload != nil {
				upload = byteSize(r.Upload.Bytes)
			}
			rows = append(rows, []string{r.Device, number(r.Attempt), r.Status, r.ExitCode, first(r.Reason, firstLine(r.Output)), upload, a.ago(r.FinishedAt)})
		}
		fmt.Fprintln(w)
		if err := writeTable(w, []string{"DEVICE", "ATTEMPT", "STATUS", "EXIT", "SAID", "UPLOAD", "FINISHED"}, rows); err != nil {
			return err
		}
		if more := len(v.Results) - maxShown; more > 0 {
			a.note("and %d more: -o json has all of them", more)
		}
		return nil
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// awaitCommand waits for the end of a command and prints what it wrote.
func (a *app) awaitCommand(ctx context.Context, c *client, id string) error {
	over := a.watchWith(ctx, c, id, &rolloutWatch{app: a, silent: true})
	if over != nil && classify(over).status != exitCondition {
		return over
	}
	results, err := c.results(ctx, id)
	if err != nil {
		return err
	}
	if err := a.printResults(results); err != nil {
		return err
	}
	bad := 0
	for _, r := range results {
		if r.Status != string(ota.Succeeded) {
			bad++
			a.note("%s: %s", r.Device, strings.TrimSpace(first(r.Class, r.Status)+" "+r.Reason))
		}
	}
	if bad > 0 {
		return hint(fail(exitCondition, "the command did not succeed on %d of %s", bad, count(len(results), "device")), "otactl command show %s has the details", id)
	}
	return over
}

// printResults writes the output of one device as it is, that of several behind
// their ids.
func (a *app) printResults(results []resultView) error {
	if a.flags.output != formatTable && a.flags.output != formatWide {
		return printList(a, view[resultView]{name: func(r resultView) string { return r.Device }}, results)
	}
	for _, r := range results {
		text := printable(r.Output)
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		for line := range strings.Lines(text) {
			if len(results) > 1 {
				line = r.Device + ": " + line
			}
			if _, err := io.WriteString(a.stdout, line); err != nil {
				return err
			}
		}
	}
	return nil
}
