/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a question to an upstream is in the tables of connections. */
#pragma once
#include "lib/quotas.h"

/*
 * A question to an upstream over UDP is no connection: it has the entry of its answer only, which says whose it is
 * and what it was sent to, and ends with it. So a client that asks several from one port, or again, has each of them
 * answered, by whomever (asking.h). Its `ack` is the message's id.
 */
static __always_inline bool is_question(const struct conn *conn, __u8 proto)
{
	return (conn->flags & CONN_QUESTION) && proto == IPPROTO_UDP;
}

#define QUESTION_TIMEOUT (5 * SECOND) /* after that another may have its port */
