package main

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// deadLetterView is a message that was given up, as -o json shows it.
type deadLetterView struct {
	Seq       int64           `json:"seq"` // of its event
	Type      string          `json:"type"`
	Attempts  int32           `json:"attempts"`
	Status    int32           `json:"status,omitempty"` // of the last
	Error     string          `json:"error"`
	GivenUpAt *time.Time      `json:"givenUpAt"`
	Due       bool            `json:"due,omitempty"` // it is about to be tried again
	Body      json.RawMessage `json:"body"`
}

func newWebhookDeadCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "dead ID", Short: "List the messages that were given up", Args: takes("ID"),
		Long: `dead lists the messages of a webhook that its receiver did not take in about a day,
by the number of their event. The last 1000 are kept, for 30 days.
"otactl webhook redeliver" sends them once more.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			views, err := c.deadLetters(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printList(a, view[deadLetterView]{
				name: func(l deadLetterView) string { return strconv.FormatInt(l.Seq, 10) },
				columns: []column[deadLetterView]{
					{head: "SEQ", cell: func(l deadLetterView) string { return strconv.FormatInt(l.Seq, 10) }},
					{head: "TYPE", cell: func(l deadLetterView) string { return l.Type }},
					{head: "GIVEN UP", cell: func(l deadLetterView) string { return a.ago(l.GivenUpAt) }},
					{head: "ATTEMPTS", cell: func(l deadLetterView) string { return strconv.Itoa(int(l.Attempts)) }},
					{head: "ERROR", cell: func(l deadLetterView) string { return l.Error }},
					{head: "BODY", wide: true, cell: func(l deadLetterView) string { return string(l.Body) }},
				},
			}, views)
		},
	}
}

func (c *client) deadLetters(ctx context.Context, webhookID string) (views []deadLetterView, err error) {
	req := &otadv1.ListDeadLettersRequest{WebhookId: webhookID, PageSize: pageSize}
	for {
		resp, err := call(ctx, c.webhooks.ListDeadLetters, req)
		if err != nil {
			return nil, err
		}
		for _, l := range resp.GetDeadLetters() {
			views = append(views, deadLetterView{
				l.GetSeq(), l.GetType(), l.GetAttempts(), l.GetStatus(), l.GetError(), when(l.GetGivenUpAt()), l.GetDue(), json.RawMessage(l.GetBody()),
			})
			req.After = l.GetSeq()
		}
		if len(resp.GetDeadLetters()) < pageSize {
			return views, nil
		}
	}
}

func newWebhookRedeliverCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "redeliver ID SEQ...|--all", Short: "Send dead letters once more",
		Long: `redeliver has dead letters sent once more, before what is next: those with these
numbers, or all. What the receiver takes is a dead letter no more. With the first that
it does not take the others stay as they are.`,
		Example: "  otactl webhook redeliver w-abc 41 43\n  otactl webhook redeliver w-abc --all",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || all != (len(args) == 1) {
				return hint(usage("want the webhook, and numbers of dead letters or --all"), "otactl webhook dead ID lists them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &otadv1.RedeliverDeadLettersRequest{WebhookId: args[0]}
			for _, arg := range args[1:] {
				seq, err := strconv.ParseInt(arg, 10, 64)
				if err != nil || seq < 1 {
					return usage("number of a dead letter %q: want one of otactl webhook dead %s", arg, args[0])
				}
				req.Seqs = append(req.Seqs, seq)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.webhooks.RedeliverDeadLetters, req)
			if err != nil {
				return err
			}
			a.note("%s will be sent once more", count(int(resp.GetCount()), "dead letter"))
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all of this webhook")
	return cmd
}
