-- The C border of libipconfig.so, as src/ffi declares it. A test reads this
-- file in LuaJIT and compares it with the library.

local ffi = require "ffi"


ffi.cdef [[
    typedef struct {
        const char *host;
        uint32_t    host_len;
        uint32_t    port;
        uint32_t    more_tries;
    } ipconfig_peer_t;

    typedef struct {
        const char *instance;
        uint32_t    instance_len;
        uint32_t    tries;
        uint32_t    mode;
        uint32_t    rule;
        uint32_t    reason;
    } ipconfig_explanation_t;

    uint32_t ipconfig_abi(void);

    int ipconfig_init(const char *config, size_t config_len,
        char *text, size_t *text_len);
    int ipconfig_worker_start(const char *config, size_t config_len,
        char *text, size_t *text_len);
    int ipconfig_plugin_start(const char *config, size_t config_len,
        void *zone, const void *store, const void *get, uint32_t *start,
        char *text, size_t *text_len);
    int ipconfig_plugin_stop(uint32_t start);

    uint64_t ipconfig_heartbeat(void);
    uint32_t ipconfig_fallback_after_ms(void);
    uint32_t ipconfig_refusal_port(void);
    int ipconfig_next_log(int *level, char *text, size_t *text_len);

    int ipconfig_service(const char *name, size_t name_len, uint32_t *handle);
    int ipconfig_poll(uint32_t service);
    int ipconfig_load(uint32_t service,
        const char *instances, size_t instances_len,
        const char *ranking, size_t ranking_len,
        char *text, size_t *text_len);
    int ipconfig_balance(uint32_t service, const void *request,
        int is_retry, const char *key, size_t key_len,
        const char *tried, size_t tried_len, uint32_t rules,
        ipconfig_peer_t *peer);
    int ipconfig_explain(ipconfig_explanation_t *explanation);
    int ipconfig_rules(uint32_t service, char *text, size_t *text_len);
    int ipconfig_finish(const void *request, int status);
    int ipconfig_finish_by_tries(const void *request, int status,
        const char *addrs, size_t addrs_len,
        const char *statuses, size_t statuses_len,
        const char *times, size_t times_len, int grpc_status);
    int ipconfig_report(const char *addrs, size_t addrs_len, int is_binary,
        const char *value, size_t value_len,
        char *text, size_t *text_len);

    int ipconfig_ask(uint32_t service, uint32_t n);
    int ipconfig_open(const char *value, size_t value_len,
                      char *text, size_t *text_len);
    int ipconfig_best(uint32_t service, uint32_t n,
        char *text, size_t *text_len);
    int ipconfig_services(char *text, size_t *text_len);
    int ipconfig_metrics(const char *status, size_t status_len,
        int fallback, double fallback_requests,
        char *text, size_t *text_len);
    int ipconfig_status(const char *status, size_t status_len,
        char *text, size_t *text_len);
]]


return {
    -- the border's version: the library must have the same
    ABI      = 5,

    -- codes, with OpenResty's numbers where the meaning is the same
    OK       = 0,
    ERROR    = -1,
    AGAIN    = -2,
    DECLINED = -5,
    UNRANKED = -6,

    RANKING_DUE = 1,
    OPEN        = 2,
    LOOK_DUE    = 3,
    TRIES_DUE   = 4,

    -- what decided on an instance
    BY_STRATEGY = 0,
    BY_RULE     = 1,
    BY_PANIC    = 2,
    BY_NOTHING  = 3,
}
