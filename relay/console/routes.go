package console

import (
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"ledgerline/ledger/sqlstore"
)

// route is one endpoint. A path that ends in a slash is served without it, too: New API redirects there.
type route struct {
	method, path string
	role         int // RoleGuest: anybody
	handle       handler
	writes       bool // a GET that writes
}

// routes are all endpoints.
func routes() []route {
	return slices.Concat(publicRoutes(), ownRoutes(), userRoutes(), channelRoutes(), siteRoutes())
}

// publicRoutes need no login: the site itself, logging in, and what a key shows to its holder.
func publicRoutes() []route {
	const get, post = http.MethodGet, http.MethodPost
	const anybody = sqlstore.RoleGuest
	return []route{
		{get, "/api/status", anybody, status, false},
		{get, "/api/setup", anybody, setupState, false},
		{post, "/api/setup", anybody, setup, false},
		{get, "/api/notice", anybody, text("Notice"), false},
		{get, "/api/about", anybody, text("About"), false},
		{get, "/api/home_page_content", anybody, text("HomePageContent"), false},
		{get, "/api/user-agreement", anybody, text("legal.user_agreement"), false},
		{get, "/api/privacy-policy", anybody, text("legal.privacy_policy"), false},
		{get, "/api/uptime/status", anybody, func(x *call) error { return x.data([]any{}) }, false},
		{get, "/api/pricing", anybody, pricing, false},
		{get, "/api/ratio_config", anybody, ratioConfig, false},

		{post, "/api/user/login", anybody, login, false},
		{post, "/api/user/register", anybody, register, false},
		{get, "/api/user/logout", anybody, logout, false},
		{post, "/api/user/auth/logout", anybody, logout, false},
		{post, "/api/user/auth/refresh", anybody, refresh, false},
		{get, "/api/user/groups", anybody, userGroups, false},

		{get, "/api/log/token", anybody, tokenLogs, false},
		{get, "/api/usage/token/", anybody, usageOfToken, false},
		{get, "/dashboard/billing/subscription", anybody, billingSubscription, false},
		{get, "/v1/dashboard/billing/subscription", anybody, billingSubscription, false},
		{get, "/dashboard/billing/usage", anybody, billingUsage, false},
		{get, "/v1/dashboard/billing/usage", anybody, billingUsage, false},
	}
}

// ownRoutes are what users do with themselves and with their keys.
func ownRoutes() []route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	const user = sqlstore.RoleUser
	return []route{
		{get, "/api/user/self", user, self, false},
		{put, "/api/user/self", user, updateSelf, false},
		{del, "/api/user/self", user, deleteSelf, false},
		{get, "/api/user/self/groups", user, userGroups, false},
		{get, "/api/user/models", user, userModels, false},
		{get, "/api/user/token", user, newAccessToken, true},
		{get, "/api/user/aff", user, invitation, true},
		{put, "/api/user/setting", user, updateSetting, false},
		{get, "/api/user/sessions", user, sessions, false},
		{del, "/api/user/sessions/:sid", user, endSession, false},
		{post, "/api/user/topup", user, redeem, false},
		{get, "/api/user/topup/info", user, topUpInformation, false},
		{get, "/api/user/topup/self", user, listOwnTopUps, false},
		{post, "/api/user/aff_transfer", user, transferReward, false},

		{get, "/api/token/", user, listTokens, false},
		{get, "/api/token/search", user, listTokens, false},
		{post, "/api/token/", user, createToken, false},
		{put, "/api/token/", user, updateToken, false},
		{post, "/api/token/batch", user, deleteTokens, false},
		{post, "/api/token/batch/keys", user, tokenKeys, false},
		{get, "/api/token/:id", user, getToken, false},
		{del, "/api/token/:id", user, deleteToken, false},
		{post, "/api/token/:id/key", user, tokenKey, false},
	}
}

// userRoutes are what administrators do with users and redemption codes.
func userRoutes() []route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	const admin = sqlstore.RoleAdmin
	return []route{
		{get, "/api/user/", admin, listUsers, false},
		{get, "/api/user/search", admin, listUsers, false},
		{post, "/api/user/", admin, createUser, false},
		{put, "/api/user/", admin, updateUser, false},
		{post, "/api/user/manage", admin, manageUser, false},
		{get, "/api/user/topup", admin, listTopUps, false},
		{post, "/api/user/topup/complete", admin, completeTopUp, false},
		{get, "/api/user/:id", admin, getUser, false},
		{del, "/api/user/:id", admin, deleteUser, false},

		{get, "/api/redemption/", admin, listRedemptions, false},
		{get, "/api/redemption/search", admin, listRedemptions, false},
		{post, "/api/redemption/", admin, createRedemptions, false},
		{put, "/api/redemption/", admin, updateRedemption, false},
		{del, "/api/redemption/invalid", admin, deleteInvalidRedemptions, false},
		{get, "/api/redemption/:id", admin, getRedemption, false},
		{del, "/api/redemption/:id", admin, deleteRedemption, false},
	}
}

// channelRoutes are what administrators do with channels.
func channelRoutes() []route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	const admin = sqlstore.RoleAdmin
	return []route{
		{get, "/api/channel/", admin, listChannels, false},
		{get, "/api/channel/search", admin, searchChannels, false},
		{get, "/api/channel/models", admin, knownModels, false},
		{get, "/api/channel/models_enabled", admin, enabledModels, false},
		{get, "/api/channel/test/:id", admin, testChannel, true},
		{get, "/api/channel/fetch_models/:id", admin, fetchModels, true},
		{post, "/api/channel/fetch_models", admin, fetchModelsOfForm, false},
		{post, "/api/channel/", admin, createChannel, false},
		{put, "/api/channel/", admin, updateChannel, false},
		{post, "/api/channel/batch", admin, deleteChannels, false},
		{post, "/api/channel/status/batch", admin, setChannelStatuses, false},
		{post, "/api/channel/fix", admin, fixAbilities, false},
		{post, "/api/channel/copy/:id", admin, copyChannel, false},
		{post, "/api/channel/tag/enabled", admin, tagStatus(sqlstore.ChannelEnabled), false},
		{post, "/api/channel/tag/disabled", admin, tagStatus(sqlstore.ChannelDisabled), false},
		{del, "/api/channel/disabled", admin, deleteDisabledChannels, false},
		{get, "/api/channel/:id", admin, getChannel, false},
		{del, "/api/channel/:id", admin, deleteChannel, false},
		{post, "/api/channel/:id/status", admin, setChannelStatus, false},
	}
}

// siteRoutes are options, groups, dashboards and logs.
func siteRoutes() []route {
	const get, put = http.MethodGet, http.MethodPut
	const user, admin, root = sqlstore.RoleUser, sqlstore.RoleAdmin, sqlstore.RoleRoot
	return []route{
		{get, "/api/option/", root, listOptions, false},
		{put, "/api/option/", root, setOption, false},
		{get, "/api/group/", admin, listGroups, false},

		{get, "/api/data/", admin, hoursByModel, false},
		{get, "/api/data/users", admin, hoursByUser, false},
		{get, "/api/data/self", user, ownHours, false},
		{get, "/api/data/flow", admin, flow, false},
		{get, "/api/data/flow/self", user, ownFlow, false},

		{get, "/api/log/", admin, listLogs, false},
		{get, "/api/log/stat", admin, logStat, false},
		{get, "/api/log/search", admin, noLogSearch, false},
		{get, "/api/log/self", user, listOwnLogs, false},
		{get, "/api/log/self/stat", user, ownLogStat, false},
		{get, "/api/log/self/search", user, noLogSearch, false},
	}
}

// Mount adds the endpoints.
func (c *Console) Mount(e *echo.Echo) {
	for _, r := range routes() {
		serve := c.anonymous(r.handle)
		if r.role != sqlstore.RoleGuest {
			serve = c.allowed(r.role, r.writes, r.handle)
		}
		e.Add(r.method, r.path, serve)
		if last := len(r.path) - 1; r.path[last] == '/' {
			e.Add(r.method, r.path[:last], serve)
		}
	}
	for _, path := range []string{"/api", "/api/*", "/dashboard/*"} {
		e.RouteNotFound(path, c.anonymous(unknown))
	}
}

// unknown answers a path or method that is not there, in the shape of the relay.
func unknown(x *call) error {
	r := x.Request()
	return x.JSON(http.StatusNotFound, relayError{relayErrorBody{
		Message: "Invalid URL (" + r.Method + " " + r.URL.Path + ")", Type: "invalid_request_error", Param: new(string),
	}})
}
