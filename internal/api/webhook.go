package api

import (
	"context"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type webhookHandler struct{ *server }

// encode is what a use case returned, beside the end of the feed.
func (h webhookHandler) encode(ctx context.Context, w fleet.Webhook, err error) (*otadv1.Webhook, error) {
	if err != nil {
		return nil, err
	}
	end, err := h.fleet.FeedEnd(ctx)
	if err != nil {
		return nil, err
	}
	return encodeWebhook(w, end), nil
}

func encodeWebhook(w fleet.Webhook, end int64) *otadv1.Webhook {
	return &otadv1.Webhook{
		Id: w.ID, Url: w.URL, Types: w.Types, RolloutId: w.RolloutID, State: string(w.State), CreatedBy: w.CreatedBy, CreatedAt: timestamp(w.CreatedAt),
		OldSecretUntil: timestamp(w.OldUntil), After: w.Seq, End: max(end, w.Seq), Failures: int32(w.Failures), NextAttemptAt: timestamp(w.NextAt),
		LastAttemptAt: timestamp(w.AttemptAt), LastStatus: int32(w.Status), LastError: w.Error, FailingSince: timestamp(w.FailingSince),
		Delivered: w.Delivered, DeadLetters: int32(w.Dead), Lost: w.Lost, LostUpTo: w.LostUpTo, LostAt: timestamp(w.LostAt),
	}
}

func (h webhookHandler) CreateWebhook(ctx context.Context, r *connect.Request[otadv1.CreateWebhookRequest]) (*connect.Response[otadv1.CreateWebhookResponse], error) {
	w, secret, err := h.fleet.CreateWebhook(ctx, fleet.WebhookSpec{
		URL: r.Msg.GetUrl(), Types: r.Msg.GetTypes(), RolloutID: r.Msg.GetRolloutId(), After: r.Msg.After, Paused: r.Msg.GetPaused(),
	})
	m, err := h.encode(ctx, w, err)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CreateWebhookResponse{Webhook: m, Secret: secret}), nil
}

func (h webhookHandler) GetWebhook(ctx context.Context, r *connect.Request[otadv1.GetWebhookRequest]) (*connect.Response[otadv1.GetWebhookResponse], error) {
	w, err := h.fleet.Webhook(ctx, r.Msg.GetId())
	m, err := h.encode(ctx, w, err)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.GetWebhookResponse{Webhook: m}), nil
}

func (h webhookHandler) ListWebhooks(ctx context.Context, _ *connect.Request[otadv1.ListWebhooksRequest]) (*connect.Response[otadv1.ListWebhooksResponse], error) {
	all, err := h.fleet.Webhooks(ctx)
	if err != nil {
		return nil, err
	}
	end, err := h.fleet.FeedEnd(ctx)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListWebhooksResponse{}
	for _, w := range all {
		out.Webhooks = append(out.Webhooks, encodeWebhook(w, end))
	}
	return connect.NewResponse(out), nil
}

func (h webhookHandler) UpdateWebhook(ctx context.Context, r *connect.Request[otadv1.UpdateWebhookRequest]) (*connect.Response[otadv1.UpdateWebhookResponse], error) {
	u := fleet.WebhookUpdate{URL: r.Msg.Url, RolloutID: r.Msg.RolloutId, After: r.Msg.After}
	if r.Msg.GetTypes() != nil {
		types := r.Msg.GetTypes().GetTypes()
		u.Types = &types
	}
	w, err := h.fleet.UpdateWebhook(ctx, r.Msg.GetId(), u)
	m, err := h.encode(ctx, w, err)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.UpdateWebhookResponse{Webhook: m}), nil
}

func (h webhookHandler) RotateWebhookSecret(ctx context.Context, r *connect.Request[otadv1.RotateWebhookSecretRequest]) (*connect.Response[otadv1.RotateWebhookSecretResponse], error) {
	w, secret, err := h.fleet.RotateWebhook(ctx, r.Msg.GetId(), r.Msg.GetOverlap().AsDuration())
	m, err := h.encode(ctx, w, err)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.RotateWebhookSecretResponse{Webhook: m, Secret: secret}), nil
}

func (h webhookHandler) TestWebhook(ctx context.Context, r *connect.Request[otadv1.TestWebhookRequest]) (*connect.Response[otadv1.TestWebhookResponse], error) {
	t, err := h.fleet.TestWebhook(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.TestWebhookResponse{Status: int32(t.Status), Took: duration(t.Took), Error: t.Error}), nil
}

func (h webhookHandler) PauseWebhook(ctx context.Context, r *connect.Request[otadv1.PauseWebhookRequest]) (*connect.Response[otadv1.PauseWebhookResponse], error) {
	w, err := h.fleet.PauseWebhook(ctx, r.Msg.GetId())
	m, err := h.encode(ctx, w, err)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.PauseWebhookResponse{Webhook: m}), nil
}

func (h webhookHandler) ResumeWebhook(ctx context.Context, r *connect.Request[otadv1.ResumeWebhookRequest]) (*connect.Response[otadv1.ResumeWebhookResponse], error) {
	w, err := h.fleet.ResumeWebhook(ctx, r.Msg.GetId())
	m, err := h.encode(ctx, w, err)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.ResumeWebhookResponse{Webhook: m}), nil
}

func (h webhookHandler) DeleteWebhook(ctx context.Context, r *connect.Request[otadv1.DeleteWebhookRequest]) (*connect.Response[otadv1.DeleteWebhookResponse], error) {
	if err := h.fleet.DeleteWebhook(ctx, r.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.DeleteWebhookResponse{}), nil
}

func (h webhookHandler) ListDeadLetters(ctx context.Context, r *connect.Request[otadv1.ListDeadLettersRequest]) (*connect.Response[otadv1.ListDeadLettersResponse], error) {
	limit, err := pageSize(r.Msg.GetPageSize())
	if err != nil {
		return nil, err
	}
	list, err := h.fleet.DeadLetters(ctx, r.Msg.GetWebhookId(), r.Msg.GetAfter(), limit)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListDeadLettersResponse{}
	for _, l := range list {
		out.DeadLetters = append(out.DeadLetters, &otadv1.DeadLetter{
			Seq: l.Seq, Type: l.Type, Body: l.Body, Attempts: int32(l.Attempts), Status: int32(l.Status), Error: l.Error, GivenUpAt: timestamp(l.At), Due: l.Due,
		})
	}
	return connect.NewResponse(out), nil
}

func (h webhookHandler) RedeliverDeadLetters(ctx context.Context, r *connect.Request[otadv1.RedeliverDeadLettersRequest]) (*connect.Response[otadv1.RedeliverDeadLettersResponse], error) {
	n, err := h.fleet.Redeliver(ctx, r.Msg.GetWebhookId(), r.Msg.GetSeqs())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.RedeliverDeadLettersResponse{Count: int32(n)}), nil
}
