// The official SDK against a relay: what works with OpenAI must work here. Prints one JSON line per step; exit code 1 and a
// message at the first that is not as it should be.
//
//   RELAY_URL, RELAY_KEY   a key with quota
//   POOR_KEY               a key without quota
import OpenAI from 'openai';
import assert from 'node:assert/strict';

const model = 'gpt-4o-mini';
const make = (apiKey) => new OpenAI({ apiKey, baseURL: process.env.RELAY_URL + '/v1', maxRetries: 0 });
const client = make(process.env.RELAY_KEY);
const messages = [{ role: 'user', content: 'Say something.' }];
// What the upstream is to answer travels in metadata; it is a field of OpenAI's own.
const script = (text) => ({ metadata: { mock: 'user=sdk;' + text } });

// failure returns the error that a call ends with.
async function failure(call) {
  try {
    await call();
  } catch (e) {
    return e;
  }
  throw new Error('the call succeeded');
}

const steps = {
  async chat() {
    const r = await client.chat.completions.create({ model, messages, ...script('prompt=20;completion=7') });
    assert.equal(r.object, 'chat.completion');
    assert.equal(r.choices[0].message.role, 'assistant');
    assert.equal(r.choices[0].finish_reason, 'stop');
    assert.deepEqual([r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.total_tokens], [20, 7, 27]);
    return { prompt: 20, completion: 7, requests: 1 };
  },

  async maxTokens() {
    const r = await client.chat.completions.create({ model, messages, max_tokens: 4, ...script('prompt=20;completion=50') });
    assert.equal(r.choices[0].finish_reason, 'length');
    assert.equal(r.usage.completion_tokens, 4);
    return { prompt: 20, completion: 4, requests: 1 };
  },

  async stream() {
    const stream = await client.chat.completions.create({ model, messages, stream: true, ...script('prompt=30;completion=9') });
    let chunks = 0;
    let finish = null;
    for await (const part of stream) {
      assert.equal(part.object, 'chat.completion.chunk');
      assert.equal(part.choices.length, 1, 'a client that did not ask for usage gets no chunk without choices');
      assert.ok(!part.usage);
      if (part.choices[0].delta.content) chunks++;
      finish = part.choices[0].finish_reason ?? finish;
    }
    assert.equal(chunks, 9);
    assert.equal(finish, 'stop');
    return { prompt: 30, completion: 9, requests: 1 };
  },

  async streamWithUsage() {
    const stream = await client.chat.completions.create({
      model, messages, stream: true, stream_options: { include_usage: true }, ...script('prompt=31;completion=5'),
    });
    let usage = null;
    for await (const part of stream) {
      if (part.usage) {
        assert.equal(part.choices.length, 0);
        usage = part.usage;
      }
    }
    assert.deepEqual([usage.prompt_tokens, usage.completion_tokens], [31, 5]);
    return { prompt: 31, completion: 5, requests: 1 };
  },

  async streamHelper() {
    const runner = client.chat.completions.stream({ model, messages, ...script('prompt=12;completion=6') });
    const text = await runner.finalContent();
    assert.equal(text.trim().split(' ').length, 6);
    return { prompt: 12, completion: 6, requests: 1 };
  },

  async completions() {
    const r = await client.completions.create({ model: 'gpt-3.5-turbo-instruct', prompt: 'Once upon', user: 'mock:user=sdk;prompt=3;completion=2' });
    assert.equal(r.object, 'text_completion');
    assert.equal(r.usage.completion_tokens, 2);
    return { other: 1, requests: 1 };
  },

  async embeddings() {
    const r = await client.embeddings.create({ model: 'text-embedding-3-small', input: ['one', 'two'], user: 'mock:user=sdk;prompt=8' });
    assert.equal(r.object, 'list');
    assert.equal(r.data.length, 2);
    assert.ok(r.data[0].embedding.length > 0);
    assert.equal(r.usage.prompt_tokens, 8);
    return { other: 1, requests: 1 };
  },

  async models() {
    const list = [];
    for await (const m of client.models.list()) list.push(m.id);
    assert.ok(list.includes(model), list.join());
    const one = await client.models.retrieve(model);
    assert.equal(one.id, model);
    assert.equal(one.object, 'model');
    // As New API answers it: status 200, and an error in place of the model.
    const none = await client.models.retrieve('no-such-model');
    assert.equal(none.error.code, 'model_not_found');
    return {};
  },

  async wrongKey() {
    const e = await failure(() => make('sk-wrong').chat.completions.create({ model, messages }));
    assert.ok(e instanceof OpenAI.AuthenticationError, String(e));
    assert.equal(e.status, 401);
    assert.equal(e.type, 'new_api_error');
    return {};
  },

  async noQuota() {
    const e = await failure(() => make(process.env.POOR_KEY).chat.completions.create({ model, messages }));
    assert.ok(e instanceof OpenAI.PermissionDeniedError, String(e));
    assert.equal(e.code, 'insufficient_user_quota');
    return {};
  },

  async unknownModel() {
    const e = await failure(() => client.chat.completions.create({ model: 'no-such-model', messages }));
    assert.equal(e.status, 503);
    assert.equal(e.code, 'model_not_found');
    return {};
  },

  async badRequest() {
    const e = await failure(() => client.chat.completions.create({ model, messages: 'no list' }));
    assert.ok(e instanceof OpenAI.BadRequestError, String(e));
    return {};
  },

  async upstreamLimits() {
    const e = await failure(() => client.chat.completions.create({ model, messages, ...script('status=429') }));
    assert.ok(e instanceof OpenAI.RateLimitError, String(e));
    assert.equal(e.code, 'mock_code');
    return {};
  },

  async upstreamFailsInMidStream() {
    const stream = await client.chat.completions.create({ model, messages, stream: true, ...script('prompt=10;completion=20;error=3') });
    let chunks = 0;
    const e = await failure(async () => {
      for await (const part of stream) if (part.choices[0]?.delta.content) chunks++;
    });
    assert.ok(e instanceof OpenAI.APIError, String(e));
    assert.equal(chunks, 3);
    return { cut: { prompt: 10, least: 3, most: 3 }, requests: 1 };
  },

  async abort() {
    const stream = await client.chat.completions.create({ model, messages, stream: true, ...script('prompt=10;completion=400;delay=10ms') });
    let chunks = 0;
    for await (const part of stream) {
      if (part.choices[0]?.delta.content) chunks++;
      if (chunks === 5) break; // the SDK aborts the request
    }
    return { cut: { prompt: 10, least: 5, most: 400 }, requests: 1 };
  },
};

for (const [name, step] of Object.entries(steps)) {
  try {
    console.log(JSON.stringify({ step: name, ...(await step()) }));
  } catch (e) {
    console.error(`${name}: ${e.stack ?? e}`);
    process.exit(1);
  }
}
