package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newWebhookCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{
		Use: "webhook", Short: "Have events sent to receivers over HTTPS, signed",
		Long: `A webhook sends every event, or those that it is for, to a URL: each as a POST of
its own, signed after Standard Webhooks 1.0.0, at least once and in order. What the
receiver does not take (any answer but 2xx) is tried again for about a day, and what
comes after it waits; then it is a dead letter: "otactl webhook dead".

Receivers have to be public, unless otad serve --webhook-allow names their network.`,
	}, newWebhookCreateCmd(a), newWebhookListCmd(a), newWebhookShowCmd(a), newWebhookUpdateCmd(a), newWebhookRotateCmd(a), newWebhookTestCmd(a),
		newWebhookPauseCmd(a), newWebhookResumeCmd(a), newWebhookDeadCmd(a), newWebhookRedeliverCmd(a), newWebhookDeleteCmd(a))
}

// webhookView is a webhook as -o json shows it. Secret is there only when it was
// just made.
type webhookView struct {
	ID             string     `json:"id"`
	URL            string     `json:"url"`
	Secret         string     `json:"secret,omitempty"`
	Types          []string   `json:"types"`
	Rollout        string     `json:"rollout,omitempty"`
	State          string     `json:"state"`
	CreatedBy      string     `json:"createdBy,omitempty"`
	CreatedAt      *time.Time `json:"createdAt,omitempty"`
	OldSecretUntil *time.Time `json:"oldSecretUntil,omitempty"`
	After          int64      `json:"after"`  // the last event that was dealt with
	Behind         int64      `json:"behind"` // events after it
	Failures       int32      `json:"failures"`
	NextAttemptAt  *time.Time `json:"nextAttemptAt,omitempty"`
	LastAttemptAt  *time.Time `json:"lastAttemptAt,omitempty"`
	LastStatus     int32      `json:"lastStatus,omitempty"`
	LastError      string     `json:"lastError,omitempty"`
	FailingSince   *time.Time `json:"failingSince,omitempty"`
	Delivered      int64      `json:"delivered"`
	DeadLetters    int32      `json:"deadLetters"`
	Lost           int64      `json:"lost"` // events neither delivered nor kept
	LostUpTo       int64      `json:"lostUpTo,omitempty"`
	LostAt         *time.Time `json:"lostAt,omitempty"`
}

func newWebhookView(w *otadv1.Webhook) webhookView {
	v := webhookView{
		ID: w.GetId(), URL: w.GetUrl(), Types: w.GetTypes(), Rollout: w.GetRolloutId(), State: w.GetState(), CreatedBy: w.GetCreatedBy(), CreatedAt: when(w.GetCreatedAt()),
		OldSecretUntil: when(w.GetOldSecretUntil()), After: w.GetAfter(), Behind: w.GetEnd() - w.GetAfter(), Failures: w.GetFailures(),
		NextAttemptAt: when(w.GetNextAttemptAt()), LastAttemptAt: when(w.GetLastAttemptAt()), LastStatus: w.GetLastStatus(), LastError: w.GetLastError(),
		FailingSince: when(w.GetFailingSince()), Delivered: w.GetDelivered(), DeadLetters: w.GetDeadLetters(), Lost: w.GetLost(), LostUpTo: w.GetLostUpTo(), LostAt: when(w.GetLostAt()),
	}
	if v.Types == nil {
		v.Types = []string{}
	}
	return v
}

// condition is the state with what is wrong.
func (w webhookView) condition() string {
	if w.State == "ENABLED" && w.FailingSince != nil {
		return "FAILING"
	}
	return w.State
}

func (w webhookView) typesText() string {
	return first(strings.Join(w.Types, ","), "all")
}

func (a *app) printWebhook(w webhookView) error {
	return printOne(a, w, w.ID, func(out io.Writer) error {
		attempt := ""
		if w.LastAttemptAt != nil {
			attempt = a.ago(w.LastAttemptAt) + ": " + first(w.LastError, fmt.Sprintf("taken (%d)", w.LastStatus))
		}
		next := ""
		if w.Failures > 0 && w.State == "ENABLED" {
			next = fmt.Sprintf("%s, event %d, after %s", first(a.ago(w.NextAttemptAt), "now"), w.After+1, count(int(w.Failures), "failed attempt"))
		}
		lost := ""
		if w.Lost > 0 {
			lost = fmt.Sprintf("%s up to number %d, noticed %s", count(int(w.Lost), "event"), w.LostUpTo, a.ago(w.LostAt))
		}
		old := ""
		if w.OldSecretUntil != nil && w.OldSecretUntil.After(a.now()) {
			old = "signs too, ends " + a.ago(w.OldSecretUntil)
		}
		return writeFields(out, []field{
			{"ID", w.ID}, {"URL", w.URL}, {"Secret", w.Secret}, {"Old secret", old}, {"Types", w.typesText()}, {"Rollout", w.Rollout}, {"State", w.condition()},
			{"Created", strings.TrimSpace(a.ago(w.CreatedAt) + by(w.CreatedBy))}, {"Delivered", strconv.FormatInt(w.Delivered, 10)},
			{"Position", fmt.Sprintf("behind event %d, %d to go", w.After, w.Behind)},
			{"Last attempt", attempt}, {"Failing", a.ago(w.FailingSince)}, {"Next attempt", next}, {"Dead letters", strconv.Itoa(int(w.DeadLetters))}, {"Lost", lost},
		})
	})
}

func by(name string) string {
	if name == "" {
		return ""
	}
	return " by " + name
}

// webhookFlags say which events are meant.
type webhookFlags struct {
	types   []string
	rollout string
	after   int64
}

func (f *webhookFlags) register(cmd *cobra.Command, after string) {
	cmd.Flags().StringSliceVar(&f.types, "type", nil, "only these events: release, rollout, stage, execution, or one such as execution.failed (with commas; '' for all)")
	cmd.Flags().StringVar(&f.rollout, "rollout", "", "only of this rollout or command ('' for any)")
	cmd.Flags().Int64Var(&f.after, "after", 0, after)
}

func newWebhookCreateCmd(a *app) *cobra.Command {
	var f webhookFlags
	var paused bool
	cmd := &cobra.Command{
		Use: "create URL", Short: "Make a webhook", Args: takes("URL"),
		Long: `create makes a webhook and writes its secret, "whsec_...", once: the receiver
verifies signatures with it, and the server does not keep it. It begins with the
next event.`,
		Example: `  otactl webhook create https://example.com/otad
  otactl webhook create https://example.com/otad --type rollout,stage.failed,execution.failed
  otactl webhook create https://example.com/otad --after 0     # all that are kept`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			req := &otadv1.CreateWebhookRequest{Url: args[0], Types: f.types, RolloutId: f.rollout, Paused: paused}
			if cmd.Flags().Changed("after") {
				req.After = &f.after
			}
			resp, err := call(cmd.Context(), c.webhooks.CreateWebhook, req)
			if err != nil {
				return err
			}
			return a.printSecret(resp.GetWebhook(), resp.GetSecret())
		},
	}
	f.register(cmd, "begin behind the event with this number, 0 for all that are kept (default: with the next one)")
	cmd.Flags().BoolVar(&paused, "paused", false, "send nothing before otactl webhook resume")
	return cmd
}

// printSecret shows a webhook with its new secret.
func (a *app) printSecret(w *otadv1.Webhook, secret string) error {
	v := newWebhookView(w)
	v.Secret = secret
	if a.flags.output == formatName {
		a.note("the secret was not shown; otactl webhook rotate %s makes another", v.ID)
	} else {
		a.note("give the secret to the receiver; it is not shown again")
	}
	return a.printWebhook(v)
}

func newWebhookListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List webhooks", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.webhooks.ListWebhooks, &otadv1.ListWebhooksRequest{})
			if err != nil {
				return err
			}
			var views []webhookView
			for _, w := range resp.GetWebhooks() {
				views = append(views, newWebhookView(w))
			}
			return printList(a, view[webhookView]{
				name: func(w webhookView) string { return w.ID },
				columns: []column[webhookView]{
					{head: "ID", cell: func(w webhookView) string { return w.ID }},
					{head: "STATE", cell: webhookView.condition},
					{head: "URL", cell: func(w webhookView) string { return w.URL }},
					{head: "TYPES", cell: webhookView.typesText},
					{head: "BEHIND", cell: func(w webhookView) string { return strconv.FormatInt(w.Behind, 10) }},
					{head: "DEAD", cell: func(w webhookView) string { return strconv.Itoa(int(w.DeadLetters)) }},
					{head: "LOST", cell: func(w webhookView) string { return strconv.FormatInt(w.Lost, 10) }},
					{head: "LAST ATTEMPT", cell: func(w webhookView) string { return a.ago(w.LastAttemptAt) }},
					{head: "ROLLOUT", wide: true, cell: func(w webhookView) string { return w.Rollout }},
					{head: "DELIVERED", wide: true, cell: func(w webhookView) string { return strconv.FormatInt(w.Delivered, 10) }},
					{head: "ERROR", wide: true, cell: func(w webhookView) string { return w.LastError }},
				},
			}, views)
		},
	}
}

// newWebhookVerb is a command about one webhook that shows it afterwards.
func newWebhookVerb(a *app, cmd *cobra.Command, f func(ctx context.Context, c *client, id string) (*otadv1.Webhook, error)) *cobra.Command {
	cmd.Use, cmd.Args = cmd.Use+" ID", takes("ID")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		w, err := f(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		return a.printWebhook(newWebhookView(w))
	}
	return cmd
}

func newWebhookShowCmd(a *app) *cobra.Command {
	return newWebhookVerb(a, &cobra.Command{Use: "show", Short: "Show a webhook and how far it came"}, func(ctx context.Context, c *client, id string) (*otadv1.Webhook, error) {
		resp, err := call(ctx, c.webhooks.GetWebhook, &otadv1.GetWebhookRequest{Id: id})
		return resp.GetWebhook(), err
	})
}

func newWebhookPauseCmd(a *app) *cobra.Command {
	return newWebhookVerb(a, &cobra.Command{Use: "pause", Short: "Send nothing until it is resumed"}, func(ctx context.Context, c *client, id string) (*otadv1.Webhook, error) {
		resp, err := call(ctx, c.webhooks.PauseWebhook, &otadv1.PauseWebhookRequest{Id: id})
		return resp.GetWebhook(), err
	})
}

func newWebhookResumeCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "resume", Short: "Send again, at once",
		Long: `resume goes on with the event that is next: after a pause, after the receiver had
answered 410, or without waiting for the next attempt when the receiver is back.`,
	}
	return newWebhookVerb(a, cmd, func(ctx context.Context, c *client, id string) (*otadv1.Webhook, error) {
		resp, err := call(ctx, c.webhooks.ResumeWebhook, &otadv1.ResumeWebhookRequest{Id: id})
		return resp.GetWebhook(), err
	})
}

func newWebhookUpdateCmd(a *app) *cobra.Command {
	var f webhookFlags
	var url string
	cmd := &cobra.Command{
		Use: "update", Short: "Change where a webhook sends, what, or from where on",
		Long: `update changes what is given, and tries the next event at once. With --after it
goes on behind that event: a later one to leave out what the receiver can not take,
an earlier one to send again what is kept.`,
		Example: "  otactl webhook update w-abc --type rollout\n  otactl webhook update w-abc --after 41",
	}
	newWebhookVerb(a, cmd, func(ctx context.Context, c *client, id string) (*otadv1.Webhook, error) {
		req := &otadv1.UpdateWebhookRequest{Id: id}
		changed := cmd.Flags().Changed
		if changed("url") {
			req.Url = &url
		}
		if changed("type") {
			req.Types = &otadv1.WebhookTypes{Types: f.types}
		}
		if changed("rollout") {
			req.RolloutId = &f.rollout
		}
		if changed("after") {
			req.After = &f.after
		}
		if req.Url == nil && req.Types == nil && req.RolloutId == nil && req.After == nil {
			return nil, hint(usage("nothing to change"), "give --url, --type, --rollout or --after")
		}
		resp, err := call(ctx, c.webhooks.UpdateWebhook, req)
		return resp.GetWebhook(), err
	})
	cmd.Flags().StringVar(&url, "url", "", "send to this URL")
	f.register(cmd, "go on behind the event with this number, 0 for all that are kept")
	return cmd
}

func newWebhookRotateCmd(a *app) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Make a new secret; the old one signs beside it for a while", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.webhooks.RotateWebhookSecret, &otadv1.RotateWebhookSecretRequest{Id: args[0], Overlap: durationpb.New(overlap)})
			if err != nil {
				return err
			}
			return a.printSecret(resp.GetWebhook(), resp.GetSecret())
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old secret signs too, at most 168h; 0s when it is stolen")
	return cmd
}

// webhookTestView is what became of a test as -o json shows it.
type webhookTestView struct {
	Status int32  `json:"status,omitempty"` // of HTTP
	TookMS int64  `json:"tookMs"`
	Error  string `json:"error,omitempty"`
}

func newWebhookTestCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "test ID", Short: "Send a test message now and show the answer", Args: takes("ID"),
		Long: `test sends a message of type webhook.test and waits for the answer, also while the
webhook is paused. Its exit status is 7 when the receiver did not take it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.webhooks.TestWebhook, &otadv1.TestWebhookRequest{Id: args[0]})
			if err != nil {
				return err
			}
			took := resp.GetTook().AsDuration()
			v := webhookTestView{resp.GetStatus(), took.Milliseconds(), resp.GetError()}
			err = printOne(a, v, args[0], func(w io.Writer) error {
				status := ""
				if v.Status != 0 {
					status = strconv.Itoa(int(v.Status))
				}
				return writeFields(w, []field{{"Status", first(status, "no answer")}, {"Took", took.Round(time.Millisecond).String()}, {"Error", v.Error}})
			})
			if err == nil && v.Error != "" {
				err = fail(exitCondition, "the test message was not taken: %s", v.Error)
			}
			return err
		},
	}
}

func newWebhookDeleteCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete ID", Short: "Delete a webhook and its dead letters", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "delete the webhook %s with its dead letters", args[0]); err != nil {
				return err
			}
			if _, err := call(cmd.Context(), c.webhooks.DeleteWebhook, &otadv1.DeleteWebhookRequest{Id: args[0]}); err != nil {
				return err
			}
			a.note("deleted %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
