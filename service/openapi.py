"""The OpenAPI document of the contract."""

from typing import Any

from service.errors import Problem

_JSON = "application/json"


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1 for every route this service answers itself."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TrueOdds",
            "version": version,
            "description": "Image classification whose probabilities mean what they say.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/models": {"get": _get("List the models", "ModelList", _problems(401, 403, 429))},
            "/v1/models/{name}": {
                "get": _get("Describe a model", "Model", _problems(401, 403, 404, 429, 503), [_NAME])
            },
            "/v1/models/{name}/classify": {"post": _CLASSIFY},
            "/v1/models/{name}/calibration": {
                "get": _get(
                    "The evidence behind a model's probabilities",
                    "Evidence",
                    _problems(401, 403, 404, 429, 503),
                    [_NAME],
                )
            },
            "/v1/models/{name}/drift": {
                "get": _get(
                    "Does a model keep its promise, by the labels that came?",
                    "Drift",
                    _problems(401, 403, 404, 429, 503),
                    [_NAME],
                )
            },
            "/v1/feedback": {"post": _FEEDBACK},
            "/livez": {"get": _get("Is this worker alive?", "Status", {})},
            "/readyz": {"get": _get("Is every model loaded and warm?", "Status", _problems(503))},
        },
        "components": {"schemas": _SCHEMAS, "securitySchemes": _SCHEMES},
        # Either, or none where the service asks for none.
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}


def _problems(*statuses: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    described = {str(status): {"description": _TITLES[status], "content": content} for status in statuses}
    return {status: told | _HEADERS.get(status, {}) for status, told in described.items()}


def _get(
    summary: str, schema: str, problems: dict[str, Any], parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    found = {"200": {"description": "OK", "content": _content(_ref(schema))}}
    return {"summary": summary, "parameters": parameters or [], "responses": found | problems}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    """Or null, where there is none."""
    return {"anyOf": [schema, {"type": "null"}]}


def _closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return _object(required, optional) | {"additionalProperties": False}


def _titles(kind: type[Problem]) -> dict[int, str]:
    titles = {kind.status: kind.title}
    for child in kind.__subclasses__():
        titles |= {status: title for status, title in _titles(child).items() if status not in titles}
    return titles


_TITLES = _titles(Problem)
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": "digits"}
_STRING, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_BOOLEAN, _STRINGS = {"type": "boolean"}, {"type": "array", "items": {"type": "string"}}
_OPTIONAL_NUMBER = {"type": ["number", "null"]}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_BINARY = {"type": "string", "format": "binary"}
# What a problem of this status always says in its head.
_HEADERS = {"503": {"headers": {"retry-after": {"required": True, "schema": {"type": "integer", "minimum": 1}}}}}

_CLASSIFY = {
    "summary": "Classify one image, or several",
    "description": (
        "One image gives one result; a form of several, or a tensor, gives `results` in order. A tensor is what the "
        "network is fed: uint8 of shape (N, H, W, 3), as a .npy file or as bytes with X-Tensor-Shape."
    ),
    "parameters": [
        _NAME,
        {
            "name": "top_k",
            "in": "query",
            "description": "How many classes to list, the likeliest first.",
            "schema": {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}], "default": 3},
        },
        {
            "name": "logits",
            "in": "query",
            "description": "Add the network's raw outputs, in the order of the model's labels.",
            "schema": {"type": "boolean", "default": False},
        },
        {
            "name": "coverage",
            "in": "query",
            "description": "How often the prediction set is to hold the true label: one of those the model offers.",
            "schema": {"type": "number", "examples": [0.99]},
        },
        {
            "name": "explain",
            "in": "query",
            "description": (
                "Add to each result what of the image it goes by, as a heat map for its likeliest class; in JSON only, "
                "of no more images than TRUEODDS_MAX_EXPLAINED."
            ),
            "schema": {"type": "boolean", "default": False},
        },
        {
            "name": "x-request-timeout-ms",
            "in": "header",
            "description": "What no batch has taken by then is answered 503 rather than late.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999},
        },
        {"name": "x-request-id", "in": "header", "schema": {"type": "string", "maxLength": 128}},
        {
            "name": "x-tensor-shape",
            "in": "header",
            "description": "Makes a body of type application/octet-stream a tensor of this shape.",
            "schema": {"type": "string", "examples": ["64,32,32,3"]},
        },
        {"name": "x-tensor-dtype", "in": "header", "schema": {"const": "uint8"}},
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "application/x-npy": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": _object({"file": {"type": "array", "items": _BINARY, "minItems": 1}}),
            },
        },
    },
    "responses": {
        "200": {
            "description": "OK",
            "content": {
                **_content({"anyOf": [_ref("Result"), _ref("Results")]}),
                "application/vnd.trueodds.predictions": {"schema": _BINARY},
            },
        },
        **_problems(400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 429, 503),
    },
}

_FEEDBACK = {
    "summary": "Tell what images show that were classified before",
    "description": "One label, or a list of up to 1,000, which is answered item by item.",
    "requestBody": {"required": True, "content": _content({"anyOf": [_ref("Label"), _ref("Labels")]})},
    "responses": {
        "200": {
            "description": "Recorded before, and the same; or, of a list, what became of each",
            "content": _content({"anyOf": [_ref("Recorded"), _ref("RecordedList")]}),
        },
        "201": {"description": "Recorded now", "content": _content(_ref("Recorded"))},
        **_problems(400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 503),
    },
}

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JWT of the identity provider."},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}

_SCHEMAS: dict[str, Any] = {
    "Problem": _object(
        {"type": _STRING, "title": _STRING, "status": _INTEGER, "detail": _STRING, "request_id": _STRING}
    ),
    "Status": _object({"status": _STRING}, {"models": _STRINGS}),
    "Prediction": _object(
        {
            "label": _STRING,
            "class_index": _INTEGER,
            "probability": _PROBABILITY,
            "uncalibrated_probability": _PROBABILITY,
        }
    ),
    "Result": _object(
        {
            "request_id": _STRING,
            "model": _object({"name": _STRING, "version": _STRING, "sha256": _STRING}),
            "predictions": {"type": "array", "items": _ref("Prediction")},
            "prediction_set": _object({"labels": _STRINGS, "coverage": _maybe(_PROBABILITY), "method": _STRING}),
            "abstain": _BOOLEAN,
            "ood": _object({"score": _NUMBER, "method": _STRING, "threshold": _maybe(_NUMBER), "is_ood": _BOOLEAN}),
            "calibration": _object(
                {
                    "id": _maybe(_STRING),
                    "method": _STRING,
                    "ece_15": _maybe(_PROBABILITY),
                    "ece_null_p99": _maybe(_PROBABILITY),
                    "n_fit": _INTEGER,
                    "valid_for": {"type": ["string", "null"], "enum": ["in_distribution", None]},
                }
            ),
        },
        {"logits": {"type": "array", "items": _NUMBER}, "explanation": _ref("Explanation")},
    ),
    "Explanation": _object(
        {
            "method": {"enum": ["cam", "occlusion"]},
            "class": _STRING,
            "png": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
            "min": _NUMBER,
            "max": _NUMBER,
        },
        {"logit": _NUMBER, "rest": _NUMBER},
    ),
    "Results": _object(
        {"results": {"type": "array", "items": {"anyOf": [_ref("Result"), _object({"error": _ref("Problem")})]}}}
    ),
    "Label": _closed(
        {
            "request_id": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
            "label": {"type": "string", "maxLength": 256},
            "sampling": {"enum": ["random", "selected"]},
        },
        {"index": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0}},
    ),
    "Labels": _closed({"feedback": {"type": "array", "items": _ref("Label"), "minItems": 1, "maxItems": 1000}}),
    "Recorded": _object(
        {
            "request_id": _STRING,
            "index": _INTEGER,
            "label": _STRING,
            "sampling": {"enum": ["random", "selected"]},
            "model": _STRING,
            "calibration": _STRING,
            "recorded": {"enum": ["now", "before"]},
        }
    ),
    "RecordedList": _object(
        {"results": {"type": "array", "items": {"anyOf": [_ref("Recorded"), _object({"error": _ref("Problem")})]}}}
    ),
    "Kept": _object(
        {
            "observed": _OPTIONAL_NUMBER,
            "interval": {"type": ["array", "null"], "items": _PROBABILITY},
            "promised": _OPTIONAL_NUMBER,
        }
    ),
    "Drift": _object(
        {
            "model": _object({"name": _STRING, "version": _STRING, "sha256": _STRING}),
            "calibration": {"type": ["string", "null"]},
            "since": {"type": ["string", "null"], "format": "date-time"},
            "labels": _object(
                dict.fromkeys(("counted", "selected", "out_of_distribution", "other_calibrations"), _INTEGER)
            ),
            "accuracy": _ref("Kept"),
            "coverage": _ref("Kept"),
            "spiegelhalter": _object({"z": _OPTIONAL_NUMBER, "p_value": _OPTIONAL_NUMBER}),
            "test": _object(dict.fromkeys(("alpha", "capital", "greatest_capital", "alarm_from", "p_value"), _NUMBER)),
            "alarm": _BOOLEAN,
            "alarm_since": {"type": ["string", "null"], "format": "date-time"},
            "alarm_at_label": {"type": ["integer", "null"]},
            "advice": _STRING,
        }
    ),
    "ModelSummary": _object(
        {
            "name": _STRING,
            "version": _STRING,
            "sha256": _STRING,
            "labels": _STRINGS,
            "accuracy": _maybe(_PROBABILITY),
            "ece_15": _maybe(_PROBABILITY),
        }
    ),
    "ModelList": _object({"models": {"type": "array", "items": _ref("ModelSummary")}}),
    "Evidence": _object(
        {
            "name": _STRING,
            "version": _STRING,
            "sha256": _STRING,
            "labels": _STRINGS,
            "calibration": _object({"id": _maybe(_STRING), "method": _STRING}),
        }
    ),
    "Model": _object(
        {
            "name": _STRING,
            "version": _STRING,
            "sha256": _STRING,
            "labels": _STRINGS,
            "input": {"type": "object"},
            "files": {"type": "object", "additionalProperties": _STRING},
            "variant": _maybe(_object({"precision": _STRING, "made_from": _STRING})),
            "backend": _object({"name": _STRING, "device": _STRING}),
            "training": {"type": "object"},
            "calibration": {"type": "object"},
            "created_by": {"type": "object", "additionalProperties": _STRING},
        }
    ),
}
